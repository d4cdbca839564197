"""docs/models.md: every family and variation of the import tests, compared with `transformers` once more.

python benchmarks/models_page.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiara.checkpoints import load_model
from kiara.families import Family
from kiara.families.registry import FAMILIES
from kiara.importing.importer import import_model
from kiara.model import GPT

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import families  # noqa: E402  # pyright: ignore[reportMissingImports]

LENGTH, CHUNK = 60, 17  # tokens; beyond every window of the tests
HEAD = """# Models

`kiara import FOLDER` reads the Hugging Face folders of these families, and GGUF files of Llama with a byte-level
tokenizer. What is not in the table is refused, with the key or the value that is not supported.

Written by `benchmarks/models_page.py` from the models of `tests/kiara/importing/test_import.py`: small ones with random
weights, with every kind of layer that the family has. Figures are the largest differences of logits in float32, whose
standard deviation is 1 to 2: from `transformers`, and of passes of {chunk} tokens with a KV cache from a single pass
over {length}. The tests also compare greedy text of the exported bundle, and open the written checkpoint in
`transformers` again.

| family | what it is | tested as | from `transformers` | cached |
|---|---|---|---|---|
"""
TAIL = """
`longrope` (Phi-3) changes its factors beyond the original context, also for keys that are in the cache; the imported
context ends there. Layers with a sliding window keep a KV cache of the whole context. ONNX Runtime's attention needs
heads whose rotated part is a multiple of 16. Mixtures of experts, state-space models and multimodal parts are not
supported.
"""


def differences(theirs: Any, ours: GPT) -> tuple[float, float]:
    length = min(LENGTH, ours.config.context_length)
    ids = torch.randint(0, ours.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, past, parts = ours(ids)[0], None, list[Tensor]()
        for start in range(0, length, CHUNK):
            logits, past = ours(ids[:, start : start + CHUNK], past)
            parts.append(logits)
        expected = theirs(ids).logits
    return (whole - expected).abs().max().item(), (torch.cat(parts, 1) - whole).abs().max().item()


def about(family: Family) -> str:
    """The first sentence of the file that describes the family."""
    modules = (module for name, module in sys.modules.items() if name.startswith("kiara.families."))
    own = next(module for module in modules if family in vars(module).values() and "registry" not in module.__name__)
    return (own.__doc__ or "").split("\n")[0]


def main() -> None:
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "kiara").rglob("*.py"))]
    rows: dict[str, list[str]] = {}
    for name in families.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            theirs = families.make_folder(name, Path(folder, "theirs"), texts)
            import_model(Path(folder, "theirs"), Path(folder, "ours"))
            ours, _ = load_model(Path(folder, "ours"))
            there, cached = differences(theirs, ours)
        kind = theirs.config.model_type
        rows.setdefault(kind, []).append(f"{name} | {there:.0e} | {cached:.0e} |")
    lines: list[str] = []
    for kind, family in FAMILIES.items():
        lines += [f"| `{kind}` | {about(family)} | {row}" for row in rows[kind]]
    (ROOT / "docs" / "models.md").write_text(
        HEAD.format(chunk=CHUNK, length=LENGTH) + "\n".join(lines) + "\n" + TAIL, "utf-8"
    )


if __name__ == "__main__":
    main()
