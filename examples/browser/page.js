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
const RUNS = { threads: "all threads", one: "one thread", webgpu: "WebGPU" };
const MOST_THREADS = 8;
const SPEEDS = "speeds"; // of this visit, in the session's storage
const element = (id) => document.getElementById(id);
const say = (text) => (element("status").textContent = text);
const stopping = new InterruptableStoppingCriteria();
const query = new URLSearchParams(location.search);
const run = query.get("run") in RUNS ? query.get("run") : "threads";
let tokenizer, model, context, variant;

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
  variant = query.get("variant") ?? Object.keys(manifest.variants)[0];
  if (!(variant in manifest.variants)) {
    throw new Error(`there is no variant ${variant}; it has ${Object.keys(manifest.variants).join(", ")}`);
  }
  context = manifest.architecture.context_length;
  tokenizer = await AutoTokenizer.from_pretrained("bundle");
  if (run === "webgpu" && !(await navigator.gpu?.requestAdapter())) {
    throw new Error("this browser has no WebGPU here; choose threads under \u201cRun on\u201d");
  }
  const cores = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1; // needs shared memory
  env.backends.onnx.wasm.numThreads = run === "one" ? 1 : cores;
  const device = run === "webgpu" ? "webgpu" : "wasm";
  model = await AutoModelForCausalLM.from_pretrained("bundle", { dtype: DTYPES[variant], device });
  element("name").textContent = manifest.name;
  element("facts").textContent =
    `${variant}, ${(manifest.parameters / 1e6).toFixed(1)}M parameters, context of ${context} tokens; ` +
    `computed on this device, ${run === "webgpu" ? "by WebGPU" : counted(env.backends.onnx.wasm.numThreads)}`;
  compare();
  say("Ready.");
  element("generate").disabled = false;
}

const counted = (threads) => `${threads} thread${threads === 1 ? "" : "s"}`;

/** Show the speeds of this visit, of this way to run and of others. */
function compare(measured = {}) {
  const speeds = { ...JSON.parse(sessionStorage.getItem(SPEEDS) ?? "{}"), ...measured };
  sessionStorage.setItem(SPEEDS, JSON.stringify(speeds));
  const rows = Object.entries(speeds).map(([name, speed]) => {
    const row = document.createElement("tr");
    row.insertCell().textContent = name;
    row.insertCell().textContent = `${speed.toFixed(0)} tokens/s`;
    return row;
  });
  element("speeds").replaceChildren(...rows);
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
    compare({ [`${variant}, ${RUNS[run]}`]: tokens / seconds });
  } catch (error) {
    say(`Failed: ${error.message}`);
  }
  element("generate").disabled = false;
  element("stop").disabled = true;
}

element("run").value = run;
element("run").addEventListener("change", (event) => {
  query.set("run", event.target.value); // the number of threads is fixed once the graph is loaded
  location.search = query;
});
element("form").addEventListener("submit", generate);
element("stop").addEventListener("click", () => stopping.interrupt());
keepForOffline()
  .catch((error) => console.info(`Not kept offline: ${error.message}`))
  .then(load)
  .catch((error) => say(`The model cannot be loaded: ${error.message}`));
