// The console's one script: keeps the page's numbers live, keys, theme, copying. Charts are in charts.js.
// Nothing here makes HTML out of text: what the server escaped is parsed inertly, and nodes are moved or their text is set.

const root = document.documentElement;
const main = document.getElementById("main");

// -- live ---------------------------------------------------------------------------------------------------------------

// The page's own address is fetched again and compared node by node: only what differs is touched, so focus, selection,
// open details and scroll positions stay where they are.
function keyOf(node) {
  return node.nodeType === 1 ? node.getAttribute("data-key") || node.id || "" : "";
}

function sameKind(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
}

function copyAttributes(from, to) {
  for (const { name, value } of [...from.attributes]) {
    if (name !== "open" && name !== "value" && to.getAttribute(name) !== value) to.setAttribute(name, value);
  }
  for (const { name } of [...to.attributes]) {
    if (name !== "open" && name !== "value" && !from.hasAttribute(name)) to.removeAttribute(name);
  }
}

function morph(to, from) {
  if (from.nodeType !== 1) {
    if (to.nodeValue !== from.nodeValue) to.nodeValue = from.nodeValue;
    return;
  }
  copyAttributes(from, to);
  if (from.hasAttribute("data-chart") || from.nodeName === "INPUT") return;
  let at = to.firstChild;
  for (const wanted of [...from.childNodes]) {
    let found = at;
    if (keyOf(wanted)) {
      while (found && !sameKind(found, wanted)) found = found.nextSibling;
    } else if (found && !sameKind(found, wanted)) {
      found = null;
    }
    if (found) {
      if (found !== at) to.insertBefore(found, at);
      else at = at.nextSibling;
      morph(found, wanted);
    } else {
      to.insertBefore(document.importNode(wanted, true), at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

let busy = false;
let last = 0;
let took = 0;

async function refresh() {
  if (busy || document.hidden) return;
  busy = true;
  last = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual", cache: "no-store" });
    if (answer.type === "opaqueredirect") return location.reload();
    if (!answer.ok) return;
    const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = parsed.getElementById("main");
    if (!fresh) return;
    if (fresh.getAttribute("data-live") !== main.getAttribute("data-live")) return location.reload();
    const lively = main.classList.contains("live");
    morph(main, fresh);
    switched(parsed, "switch");
    main.classList.toggle("live", lively);
    document.dispatchEvent(new CustomEvent("midflight:fresh"));
  } catch {
    main.classList.remove("live");
  } finally {
    busy = false;
    took = performance.now() - last;
  }
}

function listen() {
  const address = main && main.getAttribute("data-live");
  if (!address) return;
  const pause = Number(main.getAttribute("data-live-ms"));
  let stream = null;
  const open = () => {
    stream = new EventSource(address);
    stream.addEventListener("open", () => main.classList.add("live"));
    stream.addEventListener("error", () => main.classList.remove("live"));
    stream.addEventListener("pulse", () => {
      // A page that is slow to make is asked for less often.
      if (performance.now() - last >= Math.max(pause, 4 * took) - 100) refresh();
    });
  };
  const close = () => {
    if (stream) stream.close();
    stream = null;
    main.classList.remove("live");
  };
  open();
  // A page nobody looks at asks for nothing.
  document.addEventListener("visibilitychange", () => {
    close();
    if (!document.hidden) open();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
}

// -- the kill switch ----------------------------------------------------------------------------------------------------

// It is above the page, so that no form on it can lose what was typed.
function switched(parsed, ...ids) {
  for (const id of ids) {
    const fresh = parsed.getElementById(id);
    if (fresh) morph(document.getElementById(id), fresh);
  }
}

// Beside a form that somebody is filling in, it is turned in place.
async function turn(event) {
  const form = event.target;
  if (!form.closest("#switch, #held") || !document.querySelector("form.wizard")) return;
  event.preventDefault();
  try {
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.statusText);
    switched(new DOMParser().parseFromString(await answer.text(), "text/html"), "switch", "held");
    say(document.querySelector(".held") ? "Everything is held" : "It goes on");
  } catch {
    form.submit(); // the page that comes says what is wrong
  }
}

document.addEventListener("submit", turn);

// -- theme, copying -----------------------------------------------------------------------------------------------------

function say(text) {
  document.getElementById("said").textContent = text;
}

function nextTheme(button) {
  const themes = ["auto", "light", "dark"];
  const theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
  root.dataset.theme = theme;
  const secure = location.protocol === "https:" ? "; secure" : "";
  document.cookie = `midflight_theme=${theme}; path=/; max-age=31536000; samesite=lax${secure}`;
  button.setAttribute("aria-label", `Theme: ${theme}. Change it`);
  say(`Theme: ${theme}`);
}

async function copy(button) {
  const text = button.getAttribute("data-copy");
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https there is no clipboard interface: select the text, so that one key copies it.
    const shown = button.parentElement.querySelector("code, pre");
    getSelection().selectAllChildren(shown);
    say("Selected. Press Ctrl C to copy.");
    button.textContent = "Selected";
    setTimeout(() => (button.textContent = "Copy"), 1500);
    return;
  }
  button.textContent = "Copied";
  say("Copied");
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// -- keys ---------------------------------------------------------------------------------------------------------------

const help = document.getElementById("help");
let pending = -Infinity;

function typing(target) {
  return target.closest && target.closest("input, textarea, select, [contenteditable]");
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || (help && help.open)) return;
  const key = event.key;
  if (typing(event.target)) {
    if (key === "Escape") event.target.blur(); // out of a field, so that keys are commands again
    return;
  }
  if (event.timeStamp - pending < 1200) {
    pending = -Infinity;
    const link = document.querySelector(`[data-key-go="g ${CSS.escape(key)}"]`);
    if (link) link.click();
    return;
  }
  if (key === "g") {
    pending = event.timeStamp; // when it was pressed: a busy page may come to it later
  } else if (key === "/") {
    const field = document.getElementById("find");
    if (!field) return;
    event.preventDefault();
    field.focus();
    field.select();
  } else if (key === "?" && help) {
    event.preventDefault();
    help.showModal();
  } else if (key === "m") {
    const other = document.querySelector('[aria-label="Machines"] a:not([aria-current])');
    if (other) other.click();
  }
}

// A choice on a long page must not throw its reader back to the top.
function keepPlace() {
  const kept = sessionStorage.getItem("midflight:place");
  sessionStorage.removeItem("midflight:place");
  if (!kept) return;
  const place = JSON.parse(kept);
  if (place.path !== location.pathname) return;
  scrollTo(0, place.y);
  const label = place.label && document.querySelector(`[role="group"][aria-label="${CSS.escape(place.label)}"] [aria-current]`);
  if (label) label.focus({ preventScroll: true });
}

// -- forms --------------------------------------------------------------------------------------------------------------

// Of the boxes below a choice, that of what is chosen is shown.
function showChosen() {
  for (const box of document.querySelectorAll("[data-of]")) {
    const choice = document.getElementById(box.getAttribute("data-of"));
    box.classList.toggle("chosen", choice.value === box.getAttribute("data-for"));
  }
}

document.addEventListener("change", showChosen);
showChosen();
document.addEventListener("keydown", press);
document.addEventListener("click", (event) => {
  const target = event.target.closest("button, a");
  if (!target) return;
  if (target.matches("[data-theme-button]")) nextTheme(target);
  else if (target.matches("[data-help-button]")) help.showModal();
  else if (target.matches("[data-copy]")) copy(target);
  else if (target.matches("a[data-keep-scroll]")) {
    const group = target.closest('[role="group"]');
    const place = { path: location.pathname, y: scrollY, label: group && group.getAttribute("aria-label") };
    sessionStorage.setItem("midflight:place", JSON.stringify(place));
  }
});
keepPlace();
listen();
