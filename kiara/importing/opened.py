"""A model's own files, opened but not yet converted: a folder, a GGUF file, a checkpoint, or a model of the hub.

They are untrusted: only files inside the folder are read, and of pickled weights only tensors and plain values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kiara.checkpoints import WEIGHTS_FILE, read_json
from kiara.console import logger
from kiara.families import GENERATION, GENERATION_FIXED, RECOMMENDED, Family, check_keys, family_of
from kiara.importing import research_files
from kiara.importing.gguf import GGUFFile
from kiara.importing.hub import INDEX_FILE, PREFIX, fetch
from kiara.importing.tokenizers import read_tokenizer, settle_tokenizer
from kiara.importing.weights import Source, row_ranges
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Opened:
    """config, generation: as config.json and generation_config.json. tensors: by name. family: how they are stored.

    licences: the folder with the licence files, if there can be any. source: where on the hub it came from.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: dict[str, Source]
    family: Family
    tokenizer: Tokenizer
    licences: Path | None = None
    source: dict[str, str] | None = None


def open_source(source: Path | str, tokenizer: Path | None = None) -> Opened:
    """Open a model's files, after fetching them if `source` begins with `hf:`; raises UserError if that fails.

    tokenizer: a folder or file, for a checkpoint that has none.
    """
    if not str(source).startswith(PREFIX):
        return _open_path(Path(source), Path(source), tokenizer)
    fetched = fetch(str(source))
    opened = _open_path(fetched.path, fetched.root, tokenizer)
    return replace(opened, licences=fetched.folder, source=fetched.source)


def _open_path(source: Path, root: Path, tokenizer: Path | None) -> Opened:
    """root: the folder that links must not leave."""
    if source.is_file() and source.suffix in research_files.SUFFIXES:
        return _open_research(source, tokenizer)
    if tokenizer is not None:
        raise UserError("--tokenizer", f"{source} has its own tokenizer", "leave it out")
    if source.suffix.lower() == ".gguf" and source.is_file():
        file = GGUFFile(source)
        return Opened(
            file.config, {}, file.tensors, file.family, settle_tokenizer(source, file.definition, file.tokenizer_config)
        )
    if source.is_dir():
        return _open_folder(source, root)
    if not source.exists():
        raise UserError(source, "there is no such file or folder", "check the path")
    if source.is_file() and any(source.match(pattern) for pattern in PICKLED):
        raise UserError(source, "pickled weights, which can run code, are not read", f"convert them to {WEIGHTS_FILE}")
    raise UserError(
        source,
        "is neither a Hugging Face folder nor a .gguf file, nor a checkpoint of nanoGPT or llama2.c",
        "name a folder with config.json, safetensors and tokenizer.json",
    )


def _open_research(source: Path, tokenizer: Path | None) -> Opened:
    config, tensors, family = research_files.read_file(source)
    if tokenizer is None:
        remedy = "give --tokenizer, a folder with tokenizer.json or a tokenizer.model"
        raise UserError(source, "holds no tokenizer", remedy)
    return Opened(config, {}, tensors, family, read_tokenizer(tokenizer))


def _open_folder(source: Path, root: Path) -> Opened:
    config = read_json(_inside(source, "config.json", root))
    path = source / "generation_config.json"
    generation = read_json(_inside(source, path.name, root)) if path.exists() else {}
    _check_generation(source, generation)
    found = {tensor.name: tensor for path in _weight_files(source, root) for tensor in _tensors_of(path)}
    tokenizer = read_tokenizer(source)
    try:
        family = family_of(config)
    except UserError as error:
        raise error.inside(source) from None
    tensors = {family.aliases.get(name, name): tensor for name, tensor in found.items()}
    return Opened(config, generation, tensors, family, tokenizer, source)


def _check_generation(source: Path, values: dict[str, Any]) -> None:
    """Refuse settings that would change greedy decoding; log recommended sampling settings."""
    check_keys(f"{source / 'generation_config.json'}", values, GENERATION, GENERATION_FIXED)
    recommended = {key: values[key] for key in RECOMMENDED if values.get(key) is not None}
    if recommended:
        options = ", ".join(f"{key} {value}" for key, value in recommended.items())
        logger.info("The model's authors recommend %s; pass these when you generate.", options)


def _inside(folder: Path, name: str, root: Path) -> Path:
    """Path of a file in the folder, by its base name; refuses other paths, and links out of `root`."""
    path = folder / name
    if name != Path(name).name or not path.resolve().is_relative_to(root.resolve()):
        raise UserError(path, "leaves the folder", "copy the file itself into it")
    if not path.is_file():
        raise UserError(path, "there is no such file", "copy the whole folder again")
    return path


def _weight_files(source: Path, root: Path) -> list[Path]:
    if (source / WEIGHTS_FILE).exists():
        return [_inside(source, WEIGHTS_FILE, root)]
    if (source / INDEX_FILE).exists():
        names = read_json(_inside(source, INDEX_FILE, root)).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise UserError(source / INDEX_FILE, "weight_map does not map weights to files", "download it again")
        return [_inside(source, name, root) for name in sorted(set(names.values()))]
    if any(path for pattern in PICKLED for path in source.glob(pattern)):
        raise UserError(source, "pickled weights, which can run code, are not read", f"convert them to {WEIGHTS_FILE}")
    raise UserError(source / WEIGHTS_FILE, f"there is no such file, and no {INDEX_FILE}", "copy the whole folder again")


def _tensors_of(file: Path) -> Iterable[Source]:
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(file, f"damaged or truncated ({error})", "download it again") from None
    return [Source(file, name, shape, partial(_pieces, file, name, shape)) for name, shape in shapes.items()]


def _pieces(file: Path, name: str, shape: list[int]) -> Iterator[Tensor]:
    with safe_open(file, framework="pt") as opened:
        if len(shape) < 2:
            yield opened.get_tensor(name)
            return
        rows = opened.get_slice(name)
        yield from (rows[start:end] for start, end in row_ranges(shape))
