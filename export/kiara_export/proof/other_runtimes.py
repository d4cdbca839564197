"""The bundle in other runtimes: greedy tokens of onnxruntime-genai and transformers.js compared with Kiara's.

Each runs in its own process, on the bundle's own files and with its own tokenizer, from text to tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kiara.console import progress
from kiara.data import Split
from kiara_runtime.bundle import Variant
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.tokens import Tokenizer

PROMPTS, PROMPT_TOKENS = 20, 24
IDENTICAL_TOKENS, MAX_TOKENS = 64, 256  # how many must be identical; how many are searched for the first difference
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Check:
    """Another runtime. require: raises UserError if it is not installed. command: runs it; the folder is appended."""

    runtime: str
    require: Callable[[], None]
    command: Callable[[Variant], list[str]]


def _require_genai() -> None:
    if find_spec("onnxruntime_genai") is None:
        raise UserError("--check-with genai", "onnxruntime-genai is not installed", "pip install 'kiara-slm[interop]'")


def _require_transformers_js() -> None:
    if shutil.which("node") is None:
        raise UserError("--check-with transformersjs", "Node.js is not installed", "install version 20 or newer")
    command = ["node", "-e", "require.resolve('@huggingface/transformers')"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise UserError(
            "--check-with transformersjs",
            "@huggingface/transformers is not installed in this folder",
            "npm install @huggingface/transformers",
        )


CHECKS = {
    "genai": Check("onnxruntime-genai", _require_genai, lambda variant: [sys.executable, str(HERE / "check_genai.py")]),
    "transformersjs": Check(
        "transformers.js",
        _require_transformers_js,
        lambda variant: ["node", str(HERE / "check_transformers.cjs"), variant.transformers_js],
    ),
}


def prompts_of(split: Split, tokenizer: Tokenizer, context_length: int) -> list[str]:
    """Prompts taken from `split`; raises UserError if there are none or if the context leaves no room to continue."""
    prompts = list(_prompts(split, tokenizer, min(PROMPT_TOKENS, context_length // 2)))
    room = context_length - 2 * PROMPT_TOKENS
    if not prompts or room < 1:
        raise UserError(
            "--check-with",
            f"{len(prompts)} prompts of held-out text and {max(0, room)} tokens of context are not enough to compare",
            "leave --check-with out",
        )
    return prompts


def greedy_agreement(check: Check, bundle: Path, variant: Variant, prompts: list[str]) -> dict[str, Any]:
    """Compare the other runtime's greedy tokens with ours; raises UserError if the runtime fails."""
    model = load(bundle, variant.name)
    tokens = min(MAX_TOKENS, model.context_length - 2 * PROMPT_TOKENS)
    asked = {"prompts": prompts, "max_tokens": tokens}
    with (
        _pointed_at(bundle, variant) as folder,
        progress(f"{check.runtime} {variant.name}", len(prompts)) as advance,
    ):
        theirs = _run([*check.command(variant), str(folder)], json.dumps(asked), check.runtime)
        firsts = []
        for prompt, other in zip(prompts, theirs["continuations"], strict=True):
            firsts.append(_first_difference(model, prompt, other, tokens))
            advance(1)
    identical = sum(first is None or first >= min(IDENTICAL_TOKENS, tokens) for first in firsts)
    return {
        "runtime": check.runtime,
        "variant": variant.name,
        "version": theirs["version"],
        "onnxruntime": theirs.get("onnxruntime"),
        "prompts": len(prompts),
        "tokens": tokens,
        "identical_for_64_tokens": identical,
        "identical": sum(first is None for first in firsts),
        "first_difference": min((first for first in firsts if first is not None), default=None),
    }


def departure(found: dict[str, Any]) -> str | None:
    """A message if another runtime's tokens differ from ours within IDENTICAL_TOKENS, else None."""
    different = found["prompts"] - found["identical_for_64_tokens"]
    if not different:
        return None
    return (
        f"{found['runtime']} generates different greedy tokens for {found['variant']} on {different} of "
        f"{found['prompts']} prompts, first at token {found['first_difference']}"
    )


def _prompts(split: Split, tokenizer: Tokenizer, length: int) -> Iterator[str]:
    """Texts of about `length` tokens, spread evenly over the split."""
    count = split.whole_windows(length)
    wanted = min(PROMPTS, count)
    for i in range(wanted):
        ids = split.window(i * count // wanted, length)[:-1].tolist()
        text = b"".join(tokenizer.token_bytes[token] for token in ids).decode("utf-8", "ignore")
        if text.strip():
            yield text


def _first_difference(model: Model, prompt: str, other: dict[str, Any], tokens: int) -> int | None:
    """Index of the first token that differs, -1 if the prompts are tokenised differently, None if all are equal."""
    ids = [*model.tokenizer.prompt_prefix, *model.tokenize(prompt)]
    if other["prompt"] != ids:
        return -1
    ours = model.generate(ids, max_tokens=tokens, temperature=0.0, ignore_eos=True).tokens
    theirs = other["tokens"]
    for i, mine in enumerate(ours):
        if i < len(theirs) and theirs[i] != mine:
            return i
        if mine in model.eos_token_ids:  # other runtimes stop here; some return the end-of-text token, some do not
            return None
        if i >= len(theirs):
            return i
    return None


@contextmanager
def _pointed_at(bundle: Path, variant: Variant) -> Iterator[Path]:
    """A copy of the bundle, by symbolic links, whose genai_config.json points at `variant`."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "bundle")
        (folder / "onnx").mkdir(parents=True)
        for path in bundle.rglob("*"):
            if path.is_file():
                (folder / path.relative_to(bundle)).symlink_to(path.resolve())
        config = json.loads((bundle / "genai_config.json").read_text("utf-8"))
        config["model"]["decoder"]["filename"] = variant.file
        (folder / "genai_config.json").unlink()
        (folder / "genai_config.json").write_text(json.dumps(config), "utf-8")
        yield folder


def _run(command: list[str], asked: str, runtime: str) -> dict[str, Any]:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment, check=False)
    if done.returncode or not done.stdout.strip():
        said = " ".join(done.stderr.split())[-400:]
        raise UserError(
            "--check-with", f"{runtime} cannot run the bundle ({said})", "use another version of it, or leave it out"
        )
    return json.loads(done.stdout.splitlines()[-1])
