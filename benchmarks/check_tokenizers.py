"""Tokenizers against their originals on 100,000 random strings each: scripts, emoji, control bytes, runs of blanks.

SentencePiece models of the tests and that of Gemma 3, if its package is installed, against the SentencePiece library;
byte-level BPEs that split as the families do against the `tokenizers` library. By hand, `make check-tokenizers`: ten
minutes.

python benchmarks/check_tokenizers.py [number of strings]
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kiara.importing.gguf_container import Container
from kiara.importing.gguf_tokenizer import gguf_tokenizer
from kiara.importing.tokenizers import read_tokenizer, settle_tokenizer
from kiara_runtime.tokens import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import families  # noqa: E402  # pyright: ignore[reportMissingImports]
import sentencepiece_models  # noqa: E402  # pyright: ignore[reportMissingImports]

GEMMA = Path("runs/peers/gemma3-270m.gguf")  # `make bench-gemma` puts it together
COMMON = " \n\t.,'0129aZé日<>/hb"
RUNS = (
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\t\t",
    "\r\n",
    "the",
    "<b>",
    "</h1>",
    "x",
    "\u00a0",
    "👩🏽\u200d🚀",
    "e\u0301",
)
CHARACTERS = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000 and chr(i) != "▁"]  # it stands for a blank
# The `tokenizers` library applies a compiled normalisation to whole grapheme clusters, SentencePiece to characters; and
# of two segmentations with nearly equal scores it may choose the other.
KNOWN = ("SentencePiece, unigram", "SentencePiece, unigram-nfkc")
Encode = Callable[[str], list[int]]


def strings(tokenizer: Tokenizer, count: int) -> Iterator[str]:
    """Of characters, of tokens, of what is common in texts, of the lower scripts, and of runs."""
    rng = random.Random(0)
    words = [token.decode("utf-8", "ignore").replace("▁", " ") for token in tokenizer.token_bytes]
    makers: tuple[Callable[[], str], ...] = (
        lambda: "".join(rng.choices(CHARACTERS, k=rng.randrange(1, 30))),
        lambda: "".join(rng.choices(words, k=rng.randrange(1, 30))),
        lambda: "".join(rng.choices(COMMON, k=rng.randrange(1, 80))),
        lambda: "".join(chr(rng.randrange(0x3000)) for _ in range(30)).replace("▁", " "),
        lambda: "".join(rng.choices(RUNS, k=20)),
    )
    for i in range(count):
        yield makers[i % len(makers)]()


def pairs(folder: Path) -> Iterator[tuple[str, Tokenizer, Encode]]:
    """Each tokenizer with the encoder of its original."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as Library

    texts = [path.read_text("utf-8") for path in sorted((ROOT / "kiara").rglob("*.py"))]
    for kind in sentencepiece_models.KINDS:
        (folder / kind).mkdir()
        original = sentencepiece_models.train(kind, texts, folder / kind / "tokenizer.model", 2000)
        yield f"SentencePiece, {kind}", read_tokenizer(folder / kind), original.encode
    for style in ("llama3", "gpt2", "smollm", "qwen"):
        library = families.make_tokenizer(style, texts, 2000)
        library.encode_special_tokens = True
        ours = settle_tokenizer(folder, json.loads(library.to_str()), {})
        yield f"byte-level, {style}", ours, _plain(library)
    if GEMMA.is_file():
        metadata = Container(GEMMA).metadata
        definition, config = gguf_tokenizer(metadata)
        ours = settle_tokenizer(GEMMA, definition, config)
        model = _gemma(metadata)
        yield "Gemma 3", ours, SentencePieceProcessor(model_proto=model).encode
        definition["post_processor"] = None
        library = Library.from_str(json.dumps(definition))
        library.encode_special_tokens = True
        yield "Gemma 3, tokenizers", ours, _plain(library)


def _plain(library: Any) -> Encode:
    return lambda text: list(library.encode(text, add_special_tokens=False).ids)


def _gemma(metadata: dict[str, Any]) -> bytes:
    """Its `tokenizer.model`, from what a GGUF file keeps of it."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    made: Any = protobuf.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    names, scores, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    for name, score, kind in zip(names, scores, kinds, strict=True):
        made.pieces.add(piece=name.replace(" ", "▁") if kind == 4 else name, score=score, type=kind)
    made.trainer_spec.model_type, made.trainer_spec.byte_fallback = made.trainer_spec.BPE, True
    ids = {"unk_id": "unknown", "bos_id": "bos", "eos_id": "eos", "pad_id": "padding"}
    for field, key in ids.items():
        setattr(made.trainer_spec, field, metadata[f"tokenizer.ggml.{key}_token_id"])
    made.normalizer_spec.name, made.normalizer_spec.add_dummy_prefix = "identity", False
    made.normalizer_spec.remove_extra_whitespaces = False
    return made.SerializeToString()


def main(count: int) -> None:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, ours, original in pairs(Path(folder)):
            different = [text for text in strings(ours, count) if ours.encode(text) != original(text)]
            failed += len(different) if name not in KNOWN else 0
            shown = f"; such as {different[0]!r}" if different else ""
            print(f"{name:28} {ours.engine:10} {len(different)} of {count:,} differ{shown}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
