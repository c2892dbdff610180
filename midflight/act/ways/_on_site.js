/* Shows messages of Midflight on a page:
     <script src="https://m.example/site.js" data-id="ID FOR THIS VISITOR" async></script>
   The door that serves this file has the live stream too (GET /v1/site?id=) and hears what became of a message (POST /v1/site).
   data-id: see _site_id.py. Everything that is shown is set as text; a link opens only where it leads to http or https. */
(function () {
  "use strict";
  var own = document.currentScript;
  var url = own && own.src.replace(/\/site\.js(\?.*)?$/, "/v1/site");
  var id = own && own.getAttribute("data-id");
  if (!url || !id || !window.EventSource || window.__midflightOnSite) return;
  window.__midflightOnSite = true;
  var shown = {};
  var seen = {};
  var tries_max = 10; // of a stream that the door refuses, each twice as long after the one before
  var tries = 0;
  var stream = null;

  function ended(message, how) {
    take(message.id);
    seen[message.id] = true;
    tell(message, how);
  }

  function tell(message, how) {
    var body = new URLSearchParams({ id: id, message: message.id, how: how });
    // The page may be leaving: a beacon still arrives, and needs no answer.
    if (!(navigator.sendBeacon && navigator.sendBeacon(url, body))) {
      fetch(url, { method: "POST", body: body, keepalive: true, mode: "no-cors" }).catch(function () {});
    }
  }

  function take(messageId) {
    if (shown[messageId]) shown[messageId].remove();
    delete shown[messageId];
  }

  function part(name, text, style) {
    var made = document.createElement(name);
    made.textContent = text;
    made.style.cssText = style;
    return made;
  }

  function safe(link) {
    try {
      var parsed = new URL(link);
      return parsed.protocol === "https:" || parsed.protocol === "http:" ? parsed.href : "";
    } catch (_) {
      return "";
    }
  }

  function show(message) {
    if (typeof message.id !== "string" || shown[message.id] || seen[message.id]) return;
    var host = document.createElement("div");
    // A shadow root keeps the page's styles out of it and its styles out of the page.
    var root = host.attachShadow ? host.attachShadow({ mode: "open" }) : host;
    var box = part("div", "", "position:fixed;z-index:2147483000;right:16px;bottom:16px;max-width:min(360px,calc(100vw - 32px));" +
      "box-sizing:border-box;padding:16px;background:#fff;color:#111;border:1px solid #888;border-radius:8px;" +
      "font:16px/1.4 system-ui,sans-serif;box-shadow:0 4px 16px rgba(0,0,0,.25);overflow-wrap:anywhere");
    box.setAttribute("role", "status");
    box.appendChild(part("strong", message.title || "", "display:block;margin-right:32px"));
    if (message.body) box.appendChild(part("div", message.body, "margin-top:8px;white-space:pre-line"));
    var link = safe(message.link || "");
    if (link) {
      var anchor = part("a", message.link_text || link, "display:inline-block;margin-top:12px;color:#0645ad");
      anchor.href = link;
      anchor.rel = "noopener";
      anchor.addEventListener("click", function () { ended(message, "clicked"); });
      box.appendChild(anchor);
    }
    var close = part("button", "\u00d7", "position:absolute;top:8px;right:8px;width:32px;height:32px;border:0;background:none;" +
      "font-size:24px;line-height:1;cursor:pointer;color:#111");
    close.type = "button";
    close.setAttribute("aria-label", "Close");
    close.addEventListener("click", function () { ended(message, "closed"); });
    box.appendChild(close);
    root.appendChild(box);
    document.body.appendChild(host);
    shown[message.id] = host;
    tell(message, "shown");
  }

  function read(event, use) {
    var data;
    try {
      data = JSON.parse(event.data);
    } catch (_) {
      return;
    }
    if (data && typeof data === "object") use(data);
  }

  function start() {
    if (stream) stream.close();
    stream = new EventSource(url + "?id=" + encodeURIComponent(id));
    stream.addEventListener("open", function () { tries = 0; });
    stream.addEventListener("error", function () {
      // A browser comes back by itself to a stream that broke, but not to one that was refused, as it is while the door starts.
      if (this.readyState === 2 && tries < tries_max) setTimeout(start, Math.min(600, 2 * Math.pow(2, tries++)) * (500 + 500 * Math.random()));
    });
    stream.addEventListener("message", function (event) { read(event, show); });
    stream.addEventListener("only", function (event) {
      read(event, function (data) {
        Object.keys(shown).forEach(function (each) { if (!Array.isArray(data.ids) || data.ids.indexOf(each) < 0) take(each); });
      });
    });
    stream.addEventListener("gone", function (event) { read(event, function (data) { take(data.id); }); });
  }

  window.addEventListener("pagehide", function () { if (stream) stream.close(); });
  // A page that comes back as it was left has no stream any more.
  window.addEventListener("pageshow", function (event) { if (event.persisted && stream) start(); });
  if (document.body) start();
  else document.addEventListener("DOMContentLoaded", start);
})();
