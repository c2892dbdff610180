// Charts as plain SVG: lines over time, delay curves over a logarithmic axis, and shares of waves. Data comes in data-chart, as JSON.

const SVG = "http://www.w3.org/2000/svg";
const legendHeight = 22;
const bottom = 24;
const left = 46;
const right = 10;
const delayFirst = 10; // seconds at the left end of the logarithmic axis

function make(name, attributes, parent) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
}

function tag(name, className, text, parent) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function niceTop(value) {
  if (value <= 4) return 4;
  const size = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10]) if (step * size >= value && (step * size) % 4 === 0) return step * size;
  return 10 * size;
}

const short = (n) => (n >= 1e6 ? `${+(n / 1e6).toFixed(1)}M` : n >= 1e4 ? `${+(n / 1e3).toFixed(1)}k` : n.toLocaleString("en-US"));

function duration(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= size) return `${+(seconds / size).toFixed(1)} ${unit}`;
  return `${seconds} s`;
}

function hourOf(seconds, withDay) {
  const text = new Date(seconds * 1000).toISOString();
  return withDay ? `${text.slice(8, 10)}.${text.slice(5, 7)}. ${text.slice(11, 16)}` : text.slice(11, 16);
}

// Each kind of chart gives: how many places there are, where a place is, what its values are, the axes' marks, and words.
function timeModel(data) {
  const top = niceTop(Math.max(1, ...data.lines.flatMap((line) => line.values)));
  const span = Math.max(1, data.n - 1);
  const hours = (data.n * data.step) / 3600;
  const days = hours > 26;
  const mark = [300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000].find((m) => hours * 3600 <= m * 9) || 864000;
  const marks = [];
  for (let t = Math.ceil(data.start / mark) * mark; t <= data.start + span * data.step; t += mark) {
    const day = days && mark >= 86400;
    marks.push([(t - data.start) / data.step / span, day ? new Date(t * 1000).toISOString().slice(5, 10) : hourOf(t, false)]);
  }
  return {
    n: data.n,
    marks,
    levels: [0, 1, 2, 3, 4].map((i) => [i / 4, short((top * i) / 4)]),
    lines: data.lines.map((line) => ({ name: line.name, slot: line.slot, at: line.values.map((v, i) => [i / span, v / top]) })),
    place: (i) => i / span,
    head: (i) => hourOf(data.start + i * data.step, days) + " UTC",
    text: (line, i) => data.lines[line].values[i].toLocaleString("en-US"),
    unit: `each ${data.each}`,
    open: data.open && data.n > 2,
  };
}

function delayModel(data) {
  const edges = data.lines[0].points.map(([seconds]) => seconds).filter((seconds) => seconds >= delayFirst);
  const last = Math.log(edges[edges.length - 1] / delayFirst);
  const x = (seconds) => Math.log(Math.max(seconds, delayFirst) / delayFirst) / last;
  return {
    n: edges.length,
    marks: [[10, "10 s"], [60, "1 min"], [600, "10 min"], [3600, "1 h"], [21600, "6 h"], [86400, "1 d"], [604800, "7 d"]].map(([s, text]) => [x(s), text]),
    levels: [0, 1, 2, 3, 4].map((i) => [i / 4, `${i * 25}%`]),
    lines: data.lines.map((line) => ({ name: line.name, slot: line.slot, at: line.points.filter(([s]) => s >= delayFirst).map(([s, share]) => [x(s), share]) })),
    place: (i) => x(edges[i]),
    head: (i) => `within ${duration(edges[i])}`,
    text: (line, i) => `${(100 * data.lines[line].points.find(([s]) => s === edges[i])[1]).toFixed(1)}%`,
    unit: "",
  };
}

// Shares add up to one: each variant is a step of its own on the ones below it.
function sharesModel(data) {
  const n = data.waves.length;
  const days = data.at[n - 1] - data.at[0] > 86400;
  const below = data.waves.map(() => 0);
  const lines = data.lines.map((line) => {
    const steps = line.values.map((share, i) => [below[i], (below[i] += share)]);
    return { name: line.name, slot: line.slot, steps, at: steps.map(([, top], i) => [(i + 0.5) / n, Math.min(1, top)]) };
  });
  return {
    n,
    marks: data.at.map((at, i) => [(i + 0.5) / n, hourOf(at, false)]),
    levels: [0, 1, 2, 3, 4].map((i) => [i / 4, `${i * 25}%`]),
    lines,
    place: (i) => (i + 0.5) / n,
    head: (i) => `Wave ${data.waves[i]}, ${hourOf(data.at[i], days)} UTC, ${data.people[i].toLocaleString("en-US")} people`,
    text: (line, i) => `${(100 * data.lines[line].values[i]).toFixed(1)}%`,
    unit: "",
    areas: true,
  };
}

function areaOf(steps, px, py) {
  const n = steps.length;
  const top = steps.flatMap(([, high], i) => [[i / n, high], [(i + 1) / n, high]]);
  const under = steps.flatMap(([low], i) => [[i / n, low], [(i + 1) / n, low]]).reverse();
  return [...top, ...under].map(([x, y], k) => `${k ? "L" : "M"}${px(x).toFixed(1)} ${py(Math.min(1, y)).toFixed(1)}`).join("") + "Z";
}

const models = { time: timeModel, delay: delayModel, shares: sharesModel };

function draw(box) {
  const text = box.getAttribute("data-chart");
  const width = box.clientWidth - 28;
  if (width < 80 || (box.drawnText === text && box.drawnWidth === width)) return;
  box.drawnText = text;
  box.drawnWidth = width;
  const data = JSON.parse(text);
  const model = models[data.kind](data);
  const height = box.clientHeight - 22 - legendHeight;
  const w = width - left - right;
  const h = height - bottom - 8;
  const px = (x) => left + x * w;
  const py = (y) => 8 + h - y * h;
  const legend = tag("div", "legend", null, null);
  model.lines.forEach((line) => {
    const item = tag("span", "", null, legend);
    tag("i", `s${line.slot}`, null, item);
    item.append(line.name);
  });
  if (model.unit) tag("span", "", model.unit, legend);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
  for (const [y, label] of model.levels) {
    make("line", { class: "grid", x1: left, x2: left + w, y1: py(y), y2: py(y) }, svg);
    make("text", { class: "axis", x: left - 8, y: py(y) + 4, "text-anchor": "end" }, svg).textContent = label;
  }
  let free = -1;
  for (const [x, label] of model.marks) {
    const at = Math.min(Math.max(px(x), left + 14), left + w - 14);
    if (at - free < 52) continue;
    free = at;
    make("text", { class: "axis", x: at, y: height - 4, "text-anchor": "middle" }, svg).textContent = label;
  }
  for (const line of model.lines) {
    if (model.areas) {
      make("path", { class: `area s${line.slot}`, d: areaOf(line.steps, px, py) }, svg);
      continue;
    }
    const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    const whole = model.open ? line.at.slice(0, -1) : line.at;
    make("path", { class: `line s${line.slot}`, d: path(whole) }, svg);
    // The last step is still filling up; a full line would look like a fall.
    if (model.open) make("path", { class: `line partial s${line.slot}`, d: path(line.at.slice(-2)) }, svg);
  }
  box.replaceChildren(legend, svg);
  box.chart = { model, svg, px, py, width, h };
  if (box.cursorAt !== undefined && box.cursorAt !== null) point(box, Math.min(box.cursorAt, model.n - 1), false);
}

function point(box, i, aloud) {
  const { model, svg, px, py, width, h } = box.chart;
  unpoint(box);
  box.cursorAt = i;
  const group = make("g", { class: "marker" }, svg);
  const x = px(model.place(i));
  make("line", { class: "cursor", x1: x, x2: x, y1: 8, y2: 8 + h }, group);
  const tip = tag("div", "tip", null, box);
  tag("p", "", model.head(i), tip);
  const said = [model.head(i)];
  model.lines.forEach((line, k) => {
    make("circle", { class: `s${line.slot}`, cx: x, cy: py(line.at[i][1]), r: 3 }, group);
    const row = tag("div", "", null, tip);
    tag("i", `s${line.slot}`, null, row);
    tag("span", "", line.name, row);
    tag("b", "", model.text(k, i), row);
    said.push(`${line.name} ${model.text(k, i)}`);
  });
  const room = x + 24 + tip.offsetWidth < width;
  tip.style.left = `${room ? x + 26 : Math.max(6, x - tip.offsetWidth + 2)}px`;
  if (aloud) document.getElementById("said").textContent = said.join(", ");
}

function unpoint(box) {
  box.cursorAt = null;
  for (const node of box.querySelectorAll(".marker, .tip")) node.remove();
}

function nearest(box, clientX) {
  const { model, svg, px } = box.chart;
  const x = clientX - svg.getBoundingClientRect().left;
  let best = 0;
  for (let i = 1; i < model.n; i++) if (Math.abs(px(model.place(i)) - x) < Math.abs(px(model.place(best)) - x)) best = i;
  return best;
}

const watcher = new ResizeObserver((entries) => entries.forEach((entry) => draw(entry.target)));

function setUp() {
  for (const box of document.querySelectorAll("[data-chart]")) {
    draw(box);
    if (box.watched) continue;
    box.watched = true;
    watcher.observe(box);
    box.addEventListener("pointermove", (event) => box.chart && point(box, nearest(box, event.clientX), false));
    box.addEventListener("pointerleave", () => unpoint(box));
    box.addEventListener("blur", () => unpoint(box));
    box.addEventListener("keydown", (event) => {
      if (!box.chart) return;
      const n = box.chart.model.n;
      const at = box.cursorAt === null || box.cursorAt === undefined ? n - 1 : box.cursorAt;
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: n - 1 }[event.key];
      if (event.key === "Escape") return unpoint(box);
      if (to === undefined) return;
      event.preventDefault();
      point(box, Math.min(n - 1, Math.max(0, to)), true);
    });
  }
}

document.addEventListener("midflight:fresh", setUp);
setUp();
