"""A bundle in OpenVINO, which reads the int8 graph as it is: pip install openvino tokenizers

python examples/openvino_generate.py bundles/demo "def main("
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer


def main(bundle: str, prompt: str, max_tokens: int = 32) -> None:
    folder = Path(bundle)
    manifest = json.loads((folder / "kiara.json").read_text("utf-8"))
    shape = manifest["architecture"]
    graph = folder / manifest["variants"]["int8"]["file"]
    # Their defaults round the activations and the cache to 8 bits.
    exact = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(graph, "CPU", exact)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    empty = np.zeros((1, shape["num_key_value_heads"], 0, shape["head_dim"]), np.float32)
    parts = [f"{layer}.{part}" for layer in range(shape["num_hidden_layers"]) for part in ("key", "value")]
    past = {f"past_key_values.{part}": empty for part in parts}
    new = tokenizer.encode(prompt, add_special_tokens=False).ids
    length, written = 0, []
    for _ in range(max_tokens):
        length += len(new)
        found = model({"input_ids": np.array([new]), "attention_mask": np.ones((1, length), np.int64), **past})
        new = [int(found["logits"][0, -1].argmax())]
        if new[0] in manifest["eos_token_ids"]:
            break
        written += new
        past = {f"past_key_values.{part}": found[f"present.{part}"] for part in parts}
    print(tokenizer.decode(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
