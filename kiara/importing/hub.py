"""Fetches a model from the Hugging Face Hub: `hf:OWNER/NAME[@REVISION][:FILE]`. Needs the package huggingface_hub.

Downloads go into that package's own cache, which other tools share, and go on where they were interrupted. Only
weights that cannot run code, JSON files, chat templates and licences are fetched. A token comes from the usual places:
HF_TOKEN, or `hf auth login`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from kiara.checkpoints import WEIGHTS_FILE
from kiara.console import logger
from kiara.files import is_licence
from kiara.importing.gguf import part_names
from kiara_runtime.errors import UserError

PREFIX = "hf:"
INDEX_FILE = "model.safetensors.index.json"
_REFERENCE = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^:]+))?")
_FILES = (
    *"config.json generation_config.json tokenizer.json tokenizer.model tokenizer_config.json".split(),
    *"special_tokens_map.json added_tokens.json chat_template.jinja".split(),
)
_FORM = "give hf:OWNER/NAME, with @REVISION or :FILE.gguf if you like"


@dataclass(frozen=True)
class Fetched:
    """path: the GGUF file, or the folder. folder: with the licences. root: that links stay in. source: on the hub."""

    path: Path
    folder: Path
    root: Path
    source: dict[str, str]


def fetch(reference: str) -> Fetched:
    """Fetch what an import needs; raises UserError if that fails, or if there is nothing that can be imported."""
    named = _REFERENCE.fullmatch(reference)
    if named is None:
        raise UserError("PATH", "is not a model of the hub", _FORM, value=reference)
    name, file = named["name"], named["file"]
    if file is not None and (PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts):
        raise UserError("PATH", f"names a file outside the repository, {file!r}", _FORM)
    hub = _hub(reference)
    with _told(hub, reference):
        info = hub.HfApi().model_info(name, revision=named["revision"])
        present = [sibling.rfilename for sibling in info.siblings or ()]
        wanted = _gguf(reference, file, present) if file else _folder(reference, present)
        logger.info("Fetching %s at revision %s: %d files", reference, str(info.sha)[:12], len(wanted))
        folder = Path(hub.snapshot_download(name, revision=info.sha, allow_patterns=[_literal(one) for one in wanted]))
    source = {"repository": name, "revision": str(info.sha), **({"file": file} if file else {})}
    return Fetched(folder / file if file else folder, folder, folder.parent.parent, source)


def _hub(reference: str) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        remedy = "pip install 'kiara-slm[hub]'"
        raise UserError(reference, "fetching it needs the package huggingface_hub", remedy) from None
    return cast("Any", huggingface_hub)


def _folder(reference: str, present: Sequence[str]) -> list[str]:
    """The files of a model in safetensors."""
    if WEIGHTS_FILE in present:
        weights = [WEIGHTS_FILE]
    elif INDEX_FILE in present:
        weights = [INDEX_FILE, *(one for one in present if re.fullmatch(r"model-\d+-of-\d+\.safetensors", one))]
    else:
        others = [one for one in present if one.endswith(".gguf")]
        if others:
            remedy = f"name one, such as {reference}:{others[0]}"
            raise UserError(reference, f"has no {WEIGHTS_FILE}, but {len(others)} GGUF files", remedy)
        if any(one.endswith((".bin", ".pt", ".pth", ".ckpt")) for one in present):
            problem = "has only pickled weights, which can run code and are not read"
            raise UserError(reference, problem, "look for another copy of the model, with safetensors or GGUF")
        raise UserError(reference, "has no weights in safetensors or GGUF", "name a repository with a model")
    return [*(one for one in present if one in _FILES or is_licence(one)), *weights]


def _gguf(reference: str, file: str, present: Sequence[str]) -> list[str]:
    """A GGUF file with its other parts, and licences."""
    found = [one for one in present if one.endswith(".gguf")]
    if file not in found:
        remedy = f"name one of {', '.join(found)}" if found else "leave it out for a model in safetensors"
        raise UserError(reference, f"has no GGUF file {file!r}", remedy)
    folder = str(PurePosixPath(file).parent)
    parts = [one if folder == "." else f"{folder}/{one}" for one in part_names(PurePosixPath(file).name)]
    return [*(one for one in present if is_licence(one)), *(one for one in parts if one in present)]


def _literal(name: str) -> str:
    """A pattern of the package that matches this name only."""
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def _told(hub: Any, reference: str) -> Iterator[None]:
    """Failures of the hub as a UserError."""
    errors = hub.errors
    network = errors.HfHubHTTPError.__bases__  # of whichever HTTP library the package uses
    try:
        yield
    except errors.GatedRepoError:
        problem = "must be unlocked by its owner"
        remedy = "accept the terms on its page, then set HF_TOKEN or run `hf auth login`"
        raise UserError(reference, problem, remedy) from None
    except errors.RevisionNotFoundError:
        raise UserError(reference, "has no such revision", "name a branch, tag or commit of it") from None
    except errors.RepositoryNotFoundError:
        remedy = "check the name; for a private one set HF_TOKEN or run `hf auth login`"
        raise UserError(reference, "there is no such repository", remedy) from None
    except errors.OfflineModeIsEnabled:
        raise UserError(reference, "HF_HUB_OFFLINE is set", "unset it") from None
    except (*network, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "try again; what has arrived is kept"
        raise UserError(reference, f"could not be fetched ({reason:.200})", remedy) from None
