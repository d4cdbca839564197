// A request as a command and as a program, with the quoting of a shell and of Python. url: from a path to an address.
// keyed: whether the server wants a key, which both then take from the environment, as KIARA_API_KEY.

export function asCurl(url, { path, body }, keyed) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const headers = [quoted("Content-Type: application/json"), ...(keyed ? ['"Authorization: Bearer $KIARA_API_KEY"'] : [])];
  const lines = [`curl -N ${quoted(url(path))}`, ...headers.map((each) => `-H ${each}`), `-d ${quoted(JSON.stringify(body))}`];
  return `${lines.join(" \\\n  ")}\n`;
}

/** JSON's texts and numbers are Python's, too. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value === true) return "True";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${literal(each)}`).join(", ")}}`;
}

export function asPython(url, { path, body: { top_k, min_p, repetition_penalty, ...known } }, keyed) {
  const extra_body = { top_k, min_p, repetition_penalty }; // which the package has no names for
  const given = Object.entries(JSON.parse(JSON.stringify({ ...known, extra_body })));
  return `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(url("v1"))}, api_key=${keyed ? 'os.environ["KIARA_API_KEY"]' : '"none"'})
stream = client.${path.slice("v1/".length).replaceAll("/", ".")}.create(
${given.map(([name, value]) => `    ${name}=${literal(value)},\n`).join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].${known.messages ? 'delta.content or ""' : "text"}, end="", flush=True)
`;
}
