/* Shows notifications of Midflight, and opens where a click on one leads. For a service worker of the site's own:
     importScripts("https://m.example/push-worker.js"); */
self.addEventListener("push", function (event) {
  var said = {};
  try {
    said = (event.data && event.data.json()) || {};
  } catch (_) {
    // Not ours: a browser still wants something shown.
  }
  // The same tag takes the place of an earlier one, so that a message that came twice is seen once.
  event.waitUntil(self.registration.showNotification(String(said.title || ""), {
    body: String(said.body || ""), tag: String(said.tag || ""), data: { link: String(said.link || "") },
  }));
});

self.addEventListener("notificationclick", function (event) {
  event.notification.close();
  var link = (event.notification.data || {}).link || "";
  if (/^https?:\/\//i.test(link)) event.waitUntil(self.clients.openWindow(link));
});
