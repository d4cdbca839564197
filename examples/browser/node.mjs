// A bundle in Node, by the same package as the page's: npm install --prefix examples/browser
//
// node examples/browser/node.mjs bundles/demo "def main("
import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, TextStreamer, env } from "@huggingface/transformers";

const [bundle, prompt] = process.argv.slice(2);
env.allowRemoteModels = false; // nothing is fetched
env.localModelPath = path.dirname(path.resolve(bundle)) + path.sep;
const name = path.basename(bundle);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype: "q8", device: "cpu" }); // q8: int8, q4: int4
const streamer = new TextStreamer(tokenizer, { skip_prompt: true });
await model.generate({ ...tokenizer(prompt), max_new_tokens: 32, do_sample: false, streamer });
