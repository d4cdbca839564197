// Reads calls of the npm package `openai` from standard input, one JSON object per line, and prints a result for each.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const OpenAI = createRequire(process.argv[2])("openai");

async function call({ baseURL, apiKey, timeout, what, args, closeAfter }) {
  const client = new OpenAI({ baseURL, apiKey, timeout, maxRetries: 0 });
  const path = what.split(".");
  const method = path.pop();
  const resource = path.reduce((found, name) => found[name], client);
  const answer = await resource[method](...args);
  if ("getPaginatedItems" in answer) return { data: answer.data };
  if (!(Symbol.asyncIterator in answer)) return answer;
  const chunks = [];
  for await (const chunk of answer) if (chunks.push(chunk) === closeAfter) break;
  return chunks;
}

function failure(error) {
  const { status = null, param = null, code = null, message } = error;
  return { error: { kind: error.constructor.name, status, param, code, message } };
}

for await (const line of createInterface({ input: process.stdin })) {
  const answer = await call(JSON.parse(line)).then((result) => ({ result }), failure);
  console.log(JSON.stringify(answer));
}
