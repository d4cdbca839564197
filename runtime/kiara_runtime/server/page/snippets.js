// A request as a command and as a program, with the quoting of a shell and of Python. url: from a path to an address.

export function asCurl(url, { path, body }) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const header = quoted("Content-Type: application/json");
  return `curl -N ${quoted(url(path))} \\\n  -H ${header} \\\n  -d ${quoted(JSON.stringify(body))}\n`;
}

/** JSON's texts and numbers are Python's, too. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value === true) return "True";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${literal(each)}`).join(", ")}}`;
}

export function asPython(url, { path, body: { top_k, min_p, repetition_penalty, ...known } }) {
  const extra_body = { top_k, min_p, repetition_penalty }; // which the package has no names for
  const given = Object.entries(JSON.parse(JSON.stringify({ ...known, extra_body })));
  return `from openai import OpenAI

client = OpenAI(base_url=${literal(url("v1"))}, api_key="none")
stream = client.${path.slice("v1/".length).replaceAll("/", ".")}.create(
${given.map(([name, value]) => `    ${name}=${literal(value)},\n`).join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].${known.messages ? 'delta.content or ""' : "text"}, end="", flush=True)
`;
}
