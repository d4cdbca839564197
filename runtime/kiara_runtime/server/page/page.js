// The page of `kiara-run serve`. What the model, the server or the bundle say is inserted as text, never as markup.

import { ask, pieces, url } from "./client.js";
import { $, NONE, make, number, on, say } from "./elements.js";
import { describe, showCard, showReceipt } from "./model.js";
import { bindSliders, fieldOf } from "./sliders.js";
import { asCurl, asPython } from "./snippets.js";

const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const STREAMING = { stream: true, stream_options: { include_usage: true } };
const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };

let [model, keyed] = [undefined, false]; // as v1/models describes it, once loaded; whether the server wants a key
let running; // the AbortController of the request in progress
const conversation = []; // without the system message

const chatting = () => $("view-chat").checked;
// The request, from what the fields hold

function fault(id, text) {
  $(`${id}-error`).textContent = text;
  $(id).setAttribute("aria-invalid", String(text !== ""));
  return text !== "";
}

function numberFault({ min, max, step, validity }) {
  const whole = step === "1"; // other steps are only those of the arrow keys
  const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = validity;
  const wrong = badInput || rangeUnderflow || rangeOverflow || (whole && stepMismatch);
  return wrong ? `Give a ${whole ? "whole " : ""}number from ${min} to ${max}, or nothing.` : "";
}

function stops() {
  const lines = $("stop").value.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replace(/\\[nt\\]/g, (escape) => ESCAPES[escape]));
}

function isWrong(id) {
  if (id === "message") return fault(id, $(id).value.trim() ? "" : "Write a message first.");
  if (id === "stop") return fault(id, stops().length > 16 ? "Give 16 at most, one a line." : "");
  return fault(id, NUMBERS.includes(id) ? numberFault($(id)) : "");
}

function show(id) {
  const folded = $(id).closest("details");
  if (folded) folded.open = true;
  $(id).focus();
}

/** An empty field is left to the server. */
function sampling() {
  const given = NUMBERS.filter((id) => $(id).value !== "");
  const values = Object.fromEntries(given.map((id) => [id, Number($(id).value)]));
  return stops().length ? { ...values, stop: stops() } : values;
}

/** What would be sent now; undefined where a field is wrong, which is then told beside it. */
function request() {
  const wrong = [chatting() ? "message" : "prompt", ...NUMBERS, "stop"].filter(isWrong);
  if (wrong.length) {
    say(`Not sent: ${wrong.join(", ")}.`, true);
    return void show(wrong[0]);
  }
  const system = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  const messages = [...system, ...conversation, { role: "user", content: $("message").value }];
  return chatting()
    ? { path: "v1/chat/completions", body: { model: model.id, messages, ...sampling(), ...STREAMING } }
    : { path: "v1/completions", body: { model: model.id, prompt: $("prompt").value, ...sampling(), ...STREAMING } };
}

// Showing an answer: a target has the text node that grows, the box that scrolls, and what to do at the end.

function textTarget(prompt) {
  const text = new Text();
  $("output-prompt").textContent = prompt;
  $("output-text").replaceChildren(text);
  return { text, box: $("output"), end: () => text.data || text.remove() };
}

function addMessage(role, text) {
  const who = make("span", role === "user" ? "You" : "Model", { className: "who" });
  const item = make("li", [who, make("div", text, { className: "content" })], { className: role });
  $("messages").append(item);
  return item;
}

function chatTarget(content) {
  const text = new Text();
  const items = [addMessage("user", content), addMessage("assistant", text)];
  const box = $("conversation");
  $("message").value = "";
  box.scrollTop = box.scrollHeight;
  const end = () => {
    if (text.data) return conversation.push({ role: "user", content }, { role: "assistant", content: text.data });
    // A question without an answer is taken back: two in a row are more than many templates accept.
    for (const item of items) item.remove();
    $("message").value ||= content;
  };
  return { text, box, end };
}

function showFigures({ started, first, last, count, usage, finish }) {
  const tokens = usage?.completion_tokens ?? count;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  $("figure-tokens").textContent = number(tokens);
  $("figure-speed").textContent = number(tokens > 1 ? ((tokens - 1) * 1000) / (last - first) : NaN, 1);
  $("figure-first").textContent = first ? `${number(first - started)} ms` : NONE;
  $("figure-prompt").textContent = number(usage?.prompt_tokens) + (cached ? `, ${number(cached)} cached` : "");
  $("figure-finish").textContent = finish || NONE;
}

async function receive(asked, { text, box }, run) {
  let [painted, followed] = [0, box.scrollTop];
  const paint = () => {
    showFigures(run);
    // Whoever scrolled up is reading, and is left there.
    if (box.scrollTop >= followed - 8) box.scrollTop = box.scrollHeight;
    followed = Math.max(followed, box.scrollTop);
    painted = performance.now();
  };
  try {
    for await (const piece of pieces(asked, running.signal, run)) {
      run.last = performance.now();
      run.first ||= run.last;
      run.count++;
      text.appendData(piece);
      // Measured for each of thousands of tokens a second, the layout would be all that the page does.
      if (run.last - painted > 100) paint();
    }
  } finally {
    paint();
  }
}

function setRunning(controller) {
  const focused = document.activeElement;
  running = controller;
  for (const id of ["send", "new-conversation"]) $(id).disabled = Boolean(running);
  $("stop-button").disabled = !running;
  // A disabled button would drop the focus of who uses the keyboard.
  if (focused === $(running ? "send" : "stop-button")) $(running ? "stop-button" : "send").focus();
}

function tell(error, run) {
  run.finish = error.name === "AbortError" ? "stopped" : "error";
  if (error.name === "AbortError") return say("Stopped.");
  const named = String(error.param ?? "").match(/^\w+/)?.[0];
  const id = named === "messages" ? "message" : named;
  const isField = [...NUMBERS, "stop", "prompt", "message"].includes(id);
  const plain = error instanceof TypeError ? "The connection to the server failed." : error.message;
  say(isField ? `Not accepted: ${named}.` : plain, true);
  if (isField && fault(id, error.message)) show(id);
}

async function send() {
  if (!model || running) return;
  const asked = request();
  if (!asked) return;
  const { messages, prompt } = asked.body;
  const run = { started: performance.now(), first: 0, last: 0, count: 0, usage: null, finish: "" };
  const target = messages ? chatTarget(messages.at(-1).content) : textTarget(prompt);
  setRunning(new AbortController());
  target.box.setAttribute("aria-busy", "true");
  say("Generating ...");
  try {
    await receive(asked, target, run);
    say(`Finished: ${$("figure-tokens").textContent} tokens.`);
  } catch (error) {
    running.abort(); // of what may still come after an error in the stream
    tell(error, run);
  }
  showFigures(run);
  target.box.setAttribute("aria-busy", "false");
  target.end();
  setRunning(undefined);
}

// Copying the request

async function copy(write, name) {
  const asked = request();
  if (!asked) return;
  const text = write(url, asked, keyed);
  try {
    await navigator.clipboard.writeText(text); // missing over plain http, except on this machine
    say(`Copied as ${name}.`);
  } catch {
    $("copy-text").value = text;
    $("copy-dialog").showModal();
    $("copy-text").select();
  }
}

// The model

async function loadModels() {
  for (;;) {
    try {
      await ask("ready");
      const { data: models } = await (await ask("v1/models")).json();
      keyed = (await fetch(url("v1/models"), { credentials: "omit" })).status === 401;
      return models;
    } catch (error) {
      if (error.status && error.status !== 503) throw error;
      say(error.status ? "The model is loading ..." : "The server does not answer; trying again ...");
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
}

function changeView() {
  for (const id of ["chat", "new-conversation"]) $(id).hidden = !chatting();
  for (const id of ["text", "output"]) $(id).hidden = chatting();
  $("send").textContent = chatting() ? "Send" : "Generate";
}

function forget() {
  conversation.length = 0;
  $("messages").replaceChildren();
  $("message").focus();
}

function press(event) {
  if ($("copy-dialog").open) return;
  if (event.key === "Escape") running?.abort();
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault(); // which would press a button that has the focus
  send();
}

function listen() {
  bindSliders();
  on("send", "click", send);
  on("stop-button", "click", () => running?.abort());
  on("new-conversation", "click", forget);
  on("copy-curl", "click", () => copy(asCurl, "curl"));
  on("copy-python", "click", () => copy(asPython, "Python"));
  on("copy-close", "click", () => $("copy-dialog").close());
  on("views", "change", changeView);
  on("sampling", "change", ({ target }) => isWrong(fieldOf(target.id)));
  on("controls", "input", ({ target }) => target.matches("[aria-invalid=true]") && isWrong(target.id));
  on("controls", "submit", (event) => event.preventDefault());
  document.addEventListener("keydown", press);
}

async function choose(chosen) {
  model = chosen;
  describe(model);
  $("views").hidden = !model.chat;
  if (!model.chat) $("view-text").checked = true;
  changeView();
  for (const id of ["receipt", "receipt-plot", "card"]) $(id).hidden = true;
  $("receipt-note").textContent = "";
  $("model").hidden = false;
  say("Ready.");
  // A bundle may lack either, and works without.
  await Promise.allSettled([showReceipt(model), showCard(model)]);
}

async function start() {
  listen();
  $("sampling").open = matchMedia("(min-width: 60rem)").matches;
  const models = await loadModels();
  $("models").append(...models.map(({ id }) => make("option", id)));
  $("choice").hidden = models.length === 1;
  on("models", "change", () => choose(models[$("models").selectedIndex]));
  for (const id of ["send", "new-conversation", "copy-curl", "copy-python"]) $(id).disabled = false;
  await choose(models[0]);
}

start().catch((error) => say(error.message, true));
