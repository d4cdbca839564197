// The npm package `openai` with a Kiara server: list, complete, stream, chat.
//
// npm install --prefix examples/clients
// kiara-run serve bundles/demo
// node examples/clients/openai_client.mjs http://127.0.0.1:8000/v1 "def main("

import OpenAI from "openai";

async function main(baseURL, prompt) {
  const apiKey = process.env.KIARA_API_KEY ?? "none"; // the package wants one; the server does only with --api-key-file
  const client = new OpenAI({ baseURL, apiKey });
  const model = (await client.models.list()).data[0];
  console.log(`${model.id}: ${model.context_length} tokens of context`);

  const asked = { model: model.id, prompt, max_tokens: 24 };
  const whole = await client.completions.create({ ...asked, temperature: 0, stop: "\n\n" });
  console.log(`\ngreedy, ended by ${whole.choices[0].finish_reason}:\n${prompt}${whole.choices[0].text}`);

  process.stdout.write(`\nsampled, as it comes:\n${prompt}`);
  const sampled = { ...asked, temperature: 0.8, seed: 1, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.completions.create(sampled)) {
    for (const choice of chunk.choices) process.stdout.write(choice.text);
    if (chunk.usage) console.log(`\n(${chunk.usage.completion_tokens} tokens)`);
  }

  if (model.chat) {
    const said = await client.chat.completions.create({
      model: model.id,
      messages: [{ role: "user", content: prompt }],
      max_completion_tokens: 24,
      temperature: 0,
    });
    console.log(`\nchat: ${said.choices[0].message.content}`);
  }
}

try {
  await main(...process.argv.slice(2));
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  console.error(`${error.constructor.name}: ${error.message}`);
  process.exitCode = 1;
}
