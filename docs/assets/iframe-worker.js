// Pages that are opened from the disk may start no worker, so the search then runs in a frame of the page.
// The theme asks for a polyfill with this name, and would otherwise load one from the network.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = Object.assign(document.createElement("iframe"), { hidden: true });
      document.body.append(frame);
      const inner = (this.inner = frame.contentWindow);
      const tell = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inner.postMessage = (data) => setTimeout(tell, 0, data); // what the worker sends
      inner.importScripts = (...urls) => Promise.all(urls.map((other) => load(inner.document, other)));
      this.ready = load(inner.document, url);
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })));
    }

    set onmessage(listener) {
      this.addEventListener("message", listener);
    }
  };

  function load(page, url) {
    return new Promise((done, failed) => {
      const script = Object.assign(page.createElement("script"), { src: url, onload: done, onerror: failed });
      page.body.append(script);
    });
  }
}
