// What the page shows of a model: its facts, the receipt and the model card of its bundle.

import { ask, url } from "./client.js";
import { $, make, number } from "./elements.js";

/** Show what a model is. */
export function describe({ id, variant, parameters, context_length: context }) {
  const facts = { Name: id, Variant: variant, Parameters: number(parameters), Context: `${number(context)} tokens` };
  document.title = `${id} – Kiara`;
  $("name").textContent = id;
  $("facts").textContent = `${variant}, ${number(parameters / 1e6, 1)}M parameters, context of ${number(context)} tokens`;
  $("model-facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => make("div", [make("dt", name), make("dd", value)])),
  );
  $("max_tokens").max = context;
  $("max_tokens").value = Math.min($("max_tokens").value, context);
}

/** The cells of a variant, in the order of the table's head. */
function figures(variant) {
  return [
    number(variant.size_bytes / 1e6, 2),
    number(variant.bytes_per_parameter, 3),
    number(variant.bits_per_byte, 4),
    number(variant.bits_per_byte_loss, 3, { style: "percent", signDisplay: "always" }),
    number(variant.top1_agreement, 2, { style: "percent" }),
    number(variant.prefill_tokens_per_second),
    number(variant.decode_tokens_per_second),
    number(variant.peak_memory_bytes / 2 ** 20),
  ];
}

export async function showReceipt(model) {
  const path = `bundle/receipt.json?model=${encodeURIComponent(model.id)}`;
  const { variants, machine, float32_reference: reference, sample } = await (await ask(path)).json();
  const labels = [...document.querySelectorAll("#receipt thead th")].slice(1).map((head) => head.textContent);
  $("receipt-rows").replaceChildren();
  for (const [name, variant] of Object.entries(variants)) {
    const title = make("th", name === model.variant ? `${name}, served` : name, { scope: "row" });
    const cells = figures(variant).map((text) => make("td", text));
    cells.forEach((cell, i) => (cell.dataset.label = labels[i])); // shown where the table becomes a list
    $("receipt-rows").append(make("tr", [title, ...cells]));
  }
  $("receipt-note").textContent =
    `Measured on ${machine.cores} cores of ${machine.cpu}, on ${number(reference.tokens)} held-out tokens. ` +
    `fp32 itself: ${number(reference.bits_per_byte, 4)} bits per byte.`;
  if (sample) $("prompt").value ||= sample.prompt;
  $("receipt").hidden = false;
  $("receipt-plot").onload = () => ($("receipt-plot").hidden = false);
  $("receipt-plot").src = url(`bundle/receipt.png?model=${encodeURIComponent(model.id)}`);
}

export async function showCard(model) {
  const path = `bundle/README.md?model=${encodeURIComponent(model.id)}`;
  $("model-card").textContent = await (await ask(path)).text();
  $("card").hidden = false;
}
