// Loads the bundle behind models/bundle with transformers.js and continues the prompt. Everything comes from this
// server: remote models are off, and the page's security policy would not let a request out.
import {
  AutoModelForCausalLM,
  AutoTokenizer,
  InterruptableStoppingCriteria,
  TextStreamer,
  env,
} from "./vendor/transformers/transformers.min.js";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL("models/", location.href).pathname;
env.useBrowserCache = false;
env.backends.onnx.wasm.wasmPaths = new URL("vendor/onnxruntime/", location.href).href;

const DTYPES = { int8: "q8", int4: "q4", "int8-dynamic": "int8", fp16: "fp16", fp32: "fp32" };
const element = (id) => document.getElementById(id);
const say = (text) => (element("status").textContent = text);
const stopping = new InterruptableStoppingCriteria();
let tokenizer, model, context;

/** Let the service worker see everything that is loaded from here on. */
async function keepForOffline() {
  const workers = navigator.serviceWorker;
  await workers?.register("offline.js");
  if (workers && !workers.controller) {
    const claimed = new Promise((done) => workers.addEventListener("controllerchange", done, { once: true }));
    await Promise.race([claimed, new Promise((done) => setTimeout(done, 1000))]); // a hard reload is never claimed
  }
}

async function load() {
  const manifest = await (await fetch("models/bundle/kiara.json")).json();
  const variant = new URLSearchParams(location.search).get("variant") ?? Object.keys(manifest.variants)[0];
  if (!(variant in manifest.variants)) {
    throw new Error(`there is no variant ${variant}; it has ${Object.keys(manifest.variants).join(", ")}`);
  }
  context = manifest.architecture.context_length;
  tokenizer = await AutoTokenizer.from_pretrained("bundle");
  model = await AutoModelForCausalLM.from_pretrained("bundle", { dtype: DTYPES[variant], device: "wasm" });
  element("name").textContent = manifest.name;
  element("facts").textContent =
    `${variant}, ${(manifest.parameters / 1e6).toFixed(1)}M parameters, context of ${context} tokens; ` +
    `computed on this device, ${env.backends.onnx.wasm.numThreads ?? 1} threads`;
  say("Ready.");
  element("generate").disabled = false;
}

async function generate(event) {
  event.preventDefault();
  const temperature = Number(element("temperature").value);
  const inputs = tokenizer(element("prompt").value);
  const room = context - inputs.input_ids.dims[1];
  if (room < 1) {
    say(`The prompt has ${context - room} tokens, the context only ${context}: shorten it.`);
    return;
  }
  const output = element("output");
  output.textContent = element("prompt").value;
  element("generate").disabled = true;
  element("stop").disabled = false;
  stopping.reset();
  let tokens = 0;
  const started = performance.now();
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    callback_function: (text) => (output.textContent += text), // as text, never as markup
    token_callback_function: () => tokens++,
  });
  try {
    await model.generate({
      ...inputs,
      max_new_tokens: Math.min(room, Number(element("max-tokens").value)),
      do_sample: temperature > 0,
      temperature: temperature || 1,
      streamer,
      stopping_criteria: stopping,
    });
    const seconds = (performance.now() - started) / 1000;
    say(`${tokens} tokens, ${(tokens / seconds).toFixed(0)} tokens/s.`);
  } catch (error) {
    say(`Failed: ${error.message}`);
  }
  element("generate").disabled = false;
  element("stop").disabled = true;
}

element("form").addEventListener("submit", generate);
element("stop").addEventListener("click", () => stopping.interrupt());
keepForOffline()
  .catch((error) => console.info(`Not kept offline: ${error.message}`))
  .then(load)
  .catch((error) => say(`The model cannot be loaded: ${error.message}`));
