// Talking to the server: requests, and the events of a stream.

// Not location.href: that may hold a user and a password, and fetch refuses such a URL.
const BASE = new URL(".", location.origin + location.pathname);

export const url = (path) => new URL(path, BASE).href;

export async function ask(path, options) {
  const response = await fetch(url(path), options);
  if (response.ok) return response;
  // The error page of a proxy is not JSON; its status has to do.
  const { error = {} } = await response.json().catch(() => ({}));
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  throw Object.assign(new Error(message), { param: error.param, status: response.status });
}

/** The JSON of each event. A chunk may end anywhere, inside a line or a character. */
async function* events(reader) {
  const decoder = new TextDecoder();
  let [rest, complete] = ["", false];
  for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
    const lines = (rest + decoder.decode(chunk.value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((each) => each.startsWith("data:"))) {
      const data = line.slice("data:".length).trim();
      complete ||= data === "[DONE]";
      if (!complete) yield JSON.parse(data);
    }
  }
  if (!complete) throw new Error("The connection closed before the end of the text.");
}

export async function* pieces({ path, body }, signal, run) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const event of events(response.body.getReader())) {
    if (event.error) throw Object.assign(new Error(event.error.message), { param: event.error.param });
    const choice = event.choices?.[0];
    run.usage = event.usage ?? run.usage;
    run.finish = choice?.finish_reason ?? run.finish;
    const text = choice?.text ?? choice?.delta?.content;
    if (text) yield text;
  }
}
