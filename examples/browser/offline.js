// The service worker: keeps what the page has loaded, the model too, so that it opens without the server.
// What the server still has is taken from there first, so that a new bundle is noticed.
const KEPT = "kiara";
// What a page has loaded before this worker sees its requests.
const PAGE = ["./", "page.js", "style.css", "icon.svg", "app.webmanifest", "vendor/transformers/transformers.min.js"];

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open(KEPT).then((kept) => kept.addAll(PAGE)));
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(fetched(event.request));
});

async function fetched(request) {
  const kept = await caches.open(KEPT);
  try {
    const response = await fetch(request);
    if (response.status === 200) await kept.put(request, response.clone());
    return response;
  } catch (error) {
    const found = await kept.match(request, { ignoreSearch: true });
    if (found) return found;
    throw error;
  }
}
