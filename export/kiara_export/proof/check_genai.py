"""Run by `--check-with`: greedy continuations by onnxruntime-genai. Argument: a bundle. JSON on stdin and stdout."""

import json
import sys
from typing import Any

import onnxruntime_genai

genai: Any = onnxruntime_genai  # it ships no types


def main() -> None:
    asked = json.load(sys.stdin)
    model = genai.Model(sys.argv[1])
    tokenizer = genai.Tokenizer(model)
    continuations = []
    for text in asked["prompts"]:
        prompt = tokenizer.encode(text).tolist()
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + asked["max_tokens"], do_sample=False)
        generator = genai.Generator(model, params)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        continuations.append({"prompt": prompt, "tokens": generator.get_sequence(0).tolist()[len(prompt) :]})
    sys.stdout.write(json.dumps({"version": genai.__version__, "continuations": continuations}))


if __name__ == "__main__":
    main()
