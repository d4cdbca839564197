// Sliders beside number fields. The field is what counts; it also takes values beyond the slider's range.

import { $ } from "./elements.js";

export const fieldOf = (id) => id.replace("-slider", "");

export function bindSliders() {
  for (const slider of document.querySelectorAll("[type=range]")) {
    const field = $(fieldOf(slider.id));
    slider.addEventListener("input", () => (field.value = slider.value));
    field.addEventListener("input", () => field.value !== "" && (slider.value = field.value));
  }
}
