// Run by --check-with: greedy continuations by transformers.js. Arguments: a dtype and a bundle. JSON on stdin, stdout.
const fs = require("fs");
const path = require("path");
const { createRequire } = require("module");
const here = createRequire(path.join(process.cwd(), "here.js"));
const { AutoModelForCausalLM, AutoTokenizer, env } = here("@huggingface/transformers");

async function main() {
  const [dtype, bundle] = process.argv.slice(2);
  const asked = JSON.parse(fs.readFileSync(0, "utf-8"));
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(bundle) + path.sep;
  const name = path.basename(bundle);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForCausalLM.from_pretrained(name, { dtype, device: "cpu" });
  const continuations = [];
  for (const text of asked.prompts) {
    const inputs = tokenizer(text);
    const output = await model.generate({ ...inputs, max_new_tokens: asked.max_tokens, do_sample: false });
    const ids = Array.from(output.data, Number);
    const length = inputs.input_ids.dims[1];
    continuations.push({ prompt: ids.slice(0, length), tokens: ids.slice(length) });
  }
  console.log(JSON.stringify({ version: env.version, continuations }));
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
