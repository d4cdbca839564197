// Elements of the page by their ids, new ones, numbers as they are shown, and the status line.

export const NONE = "–";

export const $ = (id) => document.getElementById(id);
export const on = (id, type, act) => $(id).addEventListener(type, act);

export function number(value, digits = 0, options = {}) {
  const fixed = { minimumFractionDigits: digits, maximumFractionDigits: digits, ...options };
  return Number.isFinite(value) ? value.toLocaleString("en", fixed) : NONE;
}

export function make(tag, content, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...[content].flat());
  return made;
}

export function say(text, bad = false) {
  // The same text again would be read aloud again.
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}
