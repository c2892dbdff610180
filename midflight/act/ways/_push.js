/* Subscribes a visitor's browser to notifications of Midflight:
     <script src="https://m.example/push.js" data-id="ID FOR THIS VISITOR" data-worker="/midflight-worker.js" async></script>
   The site serves data-worker itself, with one line: importScripts("https://m.example/push-worker.js");
   A browser asks its user only after a click: call midflightPush.subscribe() from one. midflightPush.unsubscribe() ends it.
   Both return a promise of true or false. What a browser has granted before is told anew with each page, as keys may change. */
(function () {
  "use strict";
  var own = document.currentScript;
  var url = own && own.src.replace(/\/push\.js(\?.*)?$/, "/v1/push");
  var id = own && own.getAttribute("data-id");
  var worker = own && own.getAttribute("data-worker");
  if (!url || !id || !worker || window.midflightPush) return;
  var can = "serviceWorker" in navigator && "PushManager" in window;

  function tell(subscription, how) {
    var keys = subscription.toJSON().keys || {};
    var body = new URLSearchParams({ id: id, endpoint: subscription.endpoint, p256dh: keys.p256dh || "", auth: keys.auth || "", how: how });
    return fetch(url, { method: "POST", body: body, keepalive: true }).then(function (answer) { return answer.ok; });
  }

  function bytes(text) {
    var raw = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
    return Uint8Array.from(raw, function (each) { return each.charCodeAt(0); });
  }

  function known() {
    return navigator.serviceWorker.getRegistration(worker).then(function (found) { return found && found.pushManager.getSubscription(); });
  }

  function subscribe() {
    if (!can) return Promise.resolve(false);
    return Promise.all([navigator.serviceWorker.register(worker), fetch(url).then(function (answer) { return answer.json(); })])
      .then(function (both) {
        if (!both[1].key) return false;
        return navigator.serviceWorker.ready
          .then(function () { return both[0].pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: bytes(both[1].key) }); })
          .then(function (subscription) { return tell(subscription, "on"); });
      })
      .catch(function () { return false; });
  }

  function unsubscribe() {
    if (!can) return Promise.resolve(false);
    return known()
      .then(function (found) {
        if (!found) return false;
        return tell(found, "gone").then(function (heard) { return found.unsubscribe().then(function () { return heard; }); });
      })
      .catch(function () { return false; });
  }

  window.midflightPush = { subscribe: subscribe, unsubscribe: unsubscribe };
  if (can) known().then(function (found) { return found && tell(found, "on"); }).catch(function () {});
})();
