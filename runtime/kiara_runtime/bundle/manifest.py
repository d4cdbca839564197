"""The bundle on disk: its manifest `kiara.json`, and the checks made before any use of it.

Everything in the folder is untrusted until its size and SHA-256 match the manifest, and the manifest
contains a hash of its own bytes: a flipped or missing byte anywhere raises an error with the file's
name. The hashes prove integrity, not who made the bundle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from kiara_runtime.bundle.graph_file import external_files
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file

MANIFEST = "kiara.json"
FORMAT = (1, 1)  # a reader refuses a newer first number and ignores a newer second one
MAX_MANIFEST_BYTES = 4 << 20
MAX_DIMENSION = 1 << 24  # for every number in an architecture
GRAPH_FOLDER = "onnx"
HIDDEN_STATES = "hidden_states"  # an output that graphs may have: what the LM head reads, (B, S, hidden size)
_SELF_HASH = re.compile(rb'"sha256": "([0-9a-f]{64})"\n}\n\Z')
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?\Z")


@dataclass(frozen=True)
class Architecture:
    """What the runtime must know about the graph; names as in the training configuration."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    context_length: int
    vocab_size: int


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read and checked; the other files are checked by `check`, each once."""

    folder: Path
    manifest: Mapping[str, Any]
    architecture: Architecture
    eos_token_ids: frozenset[int]
    bos_token_id: int
    checked: set[str] = field(default_factory=set[str], compare=False, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read the manifest; raises UserError if it is missing, damaged or of a newer format."""
        if not isinstance(folder, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance] - Python does not check
            raise UserError("path", "is not a path", "name a bundle's folder", value=folder)
        path = Path(folder)
        if not path.is_dir():
            raise (
                UserError(path, "it is a file", "name the folder it is in")
                if path.is_file()
                else UserError(path, "there is no such folder", "name a bundle")
            )
        try:
            return _interpret(path, _read_manifest(path))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(path / MANIFEST, f"not a manifest of this format ({error!r})", "export it again") from None

    @property
    def current(self) -> bool:
        """Whether it has the format that this version writes, rather than an older one."""
        return bool(self.manifest["format_version"] == _version())

    @property
    def variants(self) -> list[str]:
        """Names of the variants inside, the default one first."""
        return list(self.manifest["variants"])

    def variant_file(self, variant: str | None, int8_cache: bool = False) -> str:
        """Name of a variant's graph, or of its graph with an int8 KV cache. Raises UserError if there is none."""
        if variant is not None and variant not in self.variants:
            raise UserError("variant", f"is not in {self.folder}", f"it has {', '.join(self.variants)}", value=variant)
        name = variant or self.variants[0]
        files = self.manifest["variants"][name]
        if int8_cache and "int8_cache" not in files:
            problem = f"there is no int8 cache for {name} in {self.folder}"
            raise UserError("kv_cache", problem, "use fp32, or export the bundle again")
        return str(files["int8_cache" if int8_cache else "file"])

    def graphs(self) -> list[tuple[str, bool]]:
        """Each graph inside: the name of its variant, and whether its KV cache is int8."""
        variants = self.manifest["variants"].items()
        return [(name, cache) for name, files in variants for cache in (False, True)[: len(_graphs(files))]]

    def check(self, names: Iterable[str] | None = None) -> None:
        """Compare sizes and hashes of the named files, or of all, with the manifest."""
        for name in self.manifest["files"] if names is None else names:
            self._check_file(name)
        # A graph may load any file beside it as weights, so an unchecked file must not be there.
        for path in sorted((self.folder / GRAPH_FOLDER).glob("*")):
            if f"{GRAPH_FOLDER}/{path.name}" not in self.manifest["files"]:
                raise UserError(path, f"not listed in {MANIFEST}", "move it out of the bundle")

    def files_of(self, variant: str | None) -> list[str]:
        """The files needed to run `variant`: all but the other variants' graphs."""
        own, variants = self.variant_file(variant), self.manifest["variants"].values()
        graphs = {graph for files in variants if files["file"] != own for graph in _graphs(files)}
        return [name for name in self.manifest["files"] if name.removesuffix("_data") not in graphs]

    def graph_of(self, variant: str | None, int8_cache: bool = False) -> Path:
        """The graph file of a variant that `check` has passed; raises UserError if it loads a file that is not listed.

        int8_cache: the one with an int8 KV cache, which reads its weights from the other one's file. ONNX Runtime
        follows paths to external weights, so only plain names beside the graph are allowed.
        """
        path = self.folder / self.variant_file(variant, int8_cache)
        try:
            names = external_files(path)
        except (ValueError, OSError) as error:
            raise UserError(path, f"not an ONNX graph ({error})", "export the bundle again") from None
        for name in names:
            if "/" in name or "\\" in name or f"{GRAPH_FOLDER}/{name}" not in self.manifest["files"]:
                problem = f"it loads weights from {name!r:.80}, which is not a file of the bundle"
                raise UserError(path, problem, "do not use this bundle")
            self._check_file(f"{GRAPH_FOLDER}/{name}")
        return path

    def _check_file(self, name: str) -> None:
        """Check a file, but only once, as hashing takes most of the time of opening a bundle."""
        if name not in self.checked:
            self._compare(name)
            self.checked.add(name)

    def _compare(self, name: str) -> None:
        path, expected = self.folder / name, self.manifest["files"][name]
        if path.is_symlink() or (path.parent != self.folder and path.parent.is_symlink()):
            raise UserError(path, "symbolic links are not allowed in a bundle", "export the bundle again")
        if not path.is_file():
            raise UserError(path, "missing", "copy the whole bundle again or export it again")
        if path.stat().st_size != expected["size"]:
            raise UserError(
                path,
                f"damaged, it has {path.stat().st_size} bytes instead of {expected['size']}",
                "copy or export the bundle again",
            )
        if hash_file(path) != expected["sha256"]:
            raise UserError(path, "damaged, its SHA-256 is not the recorded one", "copy or export the bundle again")


def _interpret(path: Path, manifest: dict[str, Any]) -> Bundle:
    """Read a Bundle from its manifest; raises UserError, or what an unexpected structure causes."""
    names = Architecture.__dataclass_fields__
    architecture = Architecture(**{name: int(manifest["architecture"][name]) for name in names})
    for name in names:
        if not 1 <= getattr(architecture, name) <= MAX_DIMENSION:
            raise UserError(
                path / MANIFEST, f"{name} {getattr(architecture, name)} is out of bounds", "export it again"
            )
    bos, *eos = (int(i) for i in (manifest["bos_token_id"], *manifest["eos_token_ids"]))
    if not eos or not all(0 <= i < architecture.vocab_size for i in (bos, *eos)):
        raise UserError(path / MANIFEST, "a bos or eos token id is outside the vocabulary", "export it again")
    files, graphs = manifest["files"], [graph for files in manifest["variants"].values() for graph in _graphs(files)]
    for name, entry in files.items():
        _ = _check_name(name), entry["size"] + 0, entry["sha256"] + ""
    for name in ("tokenizer.json", "tokenizer_config.json", *graphs):
        if _check_name(name) not in files:
            raise UserError(path / MANIFEST, f"{name} is not listed in it", "export it again")
    for name in graphs:
        if not name.startswith(f"{GRAPH_FOLDER}/"):
            raise UserError(path / MANIFEST, f"the graph {name} is not in {GRAPH_FOLDER}", "export it again")
    _ = graphs[0], [(str(g["text"]), list(g["ids"])) for g in manifest["tokenizer"]["golden"]]
    return Bundle(path, manifest, architecture, frozenset(eos), bos)


def _graphs(files: Mapping[str, str]) -> list[str]:
    """Names of the graphs of a variant, by its entry in the manifest."""
    return [files["file"], *([files["int8_cache"]] if "int8_cache" in files else [])]


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `kiara.json` with the size and hash of every file in `folder`, and with a hash of itself."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {
        _check_name(name): {"size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        for name in names
        if name != MANIFEST
    }
    manifest = {"format_version": _version(), **values, "files": files, "sha256": "0" * 64}
    data = (json.dumps(manifest, indent=2) + "\n").encode()
    digest = hashlib.sha256(data).hexdigest()
    before, after = data.rsplit(b"0" * 64, 1)
    (folder / MANIFEST).write_bytes(before + digest.encode() + after)


def io_names(layers: int) -> tuple[list[str], list[str]]:
    """Names of the graph's inputs and outputs, in order, as runtimes for ONNX decoders expect them."""
    cache = [f"{{}}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", *(name.format("past_key_values") for name in cache)]
    return inputs, ["logits", *(name.format("present") for name in cache)]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise UserError(path, f"missing, so {folder} is not a bundle", "name one that `kiara export` wrote")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(
            path, f"larger than {MAX_MANIFEST_BYTES >> 20} MiB, too large for a manifest", "export the bundle again"
        )
    data = path.read_bytes()
    found = _SELF_HASH.search(data)
    if not found:
        raise UserError(path, "damaged, its own hash is not at its end", "copy or export the bundle again")
    if hashlib.sha256(data[: found.start(1)] + b"0" * 64 + data[found.end(1) :]).digest() != bytes.fromhex(
        found[1].decode()
    ):
        raise UserError(path, "damaged, its SHA-256 is not the recorded one", "copy or export the bundle again")
    manifest = cast("dict[str, Any]", json.loads(data))
    version = str(manifest.get("format_version"))
    if int(version.split(".")[0]) > FORMAT[0]:
        problem = f"bundle format {version} is newer than this runtime's {_version()}"
        raise UserError(path, problem, "update kiara-runtime")
    return manifest


def _version() -> str:
    return ".".join(map(str, FORMAT))


def _check_name(name: str) -> str:
    """Return a plain relative name, at most one folder deep, so that nothing outside the bundle is ever touched."""
    if not _SAFE_NAME.match(name):
        raise UserError(MANIFEST, "is not a valid file name in a bundle", "export the bundle again", value=name)
    return name
