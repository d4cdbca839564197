"""Make a prepared folder from text: read, split by document, learn the tokenizer, encode.

The files are read three times, so that no pass holds more than a batch of text: to measure them, to learn the merges,
and to write the tokens. The folder appears under its name only when it is complete; until then, its pieces are beside
it, and an interrupted command goes on with them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kiara.config import Config, TokenizerConfig, is_default
from kiara.console import logger, progress
from kiara.data.conversations import PLAIN_TEMPLATE, with_turn_end
from kiara.data.corpus import Corpus, Sources
from kiara.data.dataset import MANIFEST, Dataset, read_manifest
from kiara.data.documents import Document
from kiara.data.encode import encode, token_type
from kiara.data.encode_chats import encode_chats
from kiara.data.engines import Engine, started
from kiara.data.pieces import work_folder
from kiara.data.token_ids import TokenIds
from kiara.data.tokenizer_training import LEARN_BYTES, train_tokenizer
from kiara.files import GENERATION_FILE, claim, new_folder
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer, template_of

RECIPE = 5  # raised when the same files and settings give a different folder, so that it is prepared again
_LEARNED = "tokenizer"  # folder of the tokenizer, among the pieces
TAKEN = ("tokenizer.json", "tokenizer_config.json", GENERATION_FILE)  # files of a checkpoint that it depends on, too


def prepare(config: Config, out: Path, sources: Sources | None = None, engine: Engine = "local") -> bool:
    """Write the prepared folder `out`; returns False if it was up to date already. Goes on where it was interrupted.

    sources: of the configuration, if found already. Raises UserError for text that is too short to train on.
    """
    if engine == "ray" and config.data.format != "text":
        raise UserError("--engine", "ray is for text alone", "use --engine local, or leave it out")
    sources = sources or Sources.of(config)
    named = ", ".join(sources.train)
    fingerprint = _fingerprint(config, sources)
    known = read_manifest(out) if out.exists() else None
    if known and known["fingerprint"] == fingerprint:
        return False
    claim(out, "prepared folder", sources.files)
    if known and known["source"] != named:
        raise UserError(
            f"--out {out}", f"was prepared from {known['source']}", "choose another, or delete it if unused"
        )
    with (
        started(engine),
        new_folder(out, "prepared folder", sources.files) as folder,
        work_folder(out, fingerprint) as work,
    ):
        written = _write(config, sources, folder, work, engine)
        if _fingerprint(config, sources) != fingerprint:
            raise UserError(named, "a file changed while it was read", "run the same command again")
        manifest = {
            "fingerprint": fingerprint, "source": named, "settings": shaping_settings(config), **written
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return True


def prepare_folder(config: Config, out: Path, sources: Sources | None = None, engine: Engine = "local") -> Dataset:
    """Prepare `out` if it is not up to date, log its contents, and open it."""
    fresh = prepare(config, out, sources, engine)
    dataset = Dataset.open(out)
    splits = dataset.manifest["splits"]
    train, val = splits["train"], splits["val"]
    logger.info(
        "%s %s: %s documents, %.1f MB, %s tokens (%.2f bytes each) to train on; %s documents, %s tokens held out; "
        "vocabulary %d.",
        "Prepared" if fresh else "Up to date:", out, f"{train['documents']:,}", train["bytes"] / 1e6,
        f"{train['tokens']:,}", train["bytes"] / train["tokens"], f"{val['documents']:,}", f"{val['tokens']:,}",
        dataset.tokenizer.vocab_size,
    )  # fmt: skip
    if config.data.format != "text":
        answers = train.get("answer_tokens", 0)
        logger.info("Conversations: %s of the %s tokens are answers to learn.", f"{answers:,}", f"{train['tokens']:,}")
    for reason, count in dataset.manifest["dropped"].items():
        logger.info("Left out: %s documents (%s).", f"{count:,}", reason)
    if replaced := dataset.manifest["replaced"]:
        logger.info("Unreadable characters were replaced in %s documents.", f"{replaced:,}")
    return dataset


def dataset_of(config: Config) -> Dataset:
    """The data of a configuration: the prepared folder that it names, or one prepared from the source that it names."""
    named = Path(config.data.train)
    if not config.data.mix and read_manifest(named) is not None:
        as_prepared(config)
        return Dataset.open(named)
    sources = Sources.of(config)
    name = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(sources.train)).strip("-")[-40:] or "text"
    out = Path(config.data.prepared_dir, f"{name}-{_fingerprint(config, sources)[:8]}")
    return prepare_folder(config, out, sources)


def as_prepared(config: Config) -> Config:
    """The configuration, with the settings of the prepared folder that data.train names, if it names one.

    Raises UserError if a given setting differs from the folder's, because it would have no effect.
    """
    manifest = read_manifest(Path(config.data.train))
    if manifest is None:
        return config
    if config.data.val and config.data.val != manifest.get("settings", {}).get("data.val"):
        raise UserError("data.val", "the prepared folder has its own validation split", "set this to null")
    settings = {"tokenizer.vocab_size": manifest["vocab_size"], **manifest.get("settings", {})}
    for path, there in settings.items():
        section, _, name = path.partition(".")
        part = getattr(config, section)
        given = getattr(part, name)
        if path == "tokenizer.source":  # it may have moved; the trainer compares the tokenizers themselves
            continue
        made = manifest["vocab_size"] if name == "vocab_size" else there
        if name in part.model_fields_set and given not in (there, made):
            raise UserError(
                path,
                f"is {given!r}, but {config.data.train} was prepared with {there!r}",
                "remove it, or prepare the text again with it",
            )
        config = config.model_copy(update={section: part.model_copy(update={name: there})})
    return config


def shaping_settings(config: Config) -> dict[str, Any]:
    """The settings that a prepared folder depends on, by dotted path."""
    data = config.data.model_dump(exclude={"prepared_dir", "train"})
    return {f"data.{name}": value for name, value in data.items()} | {
        f"tokenizer.{name}": value for name, value in config.tokenizer.model_dump().items()
    }


def _fingerprint(config: Config, sources: Sources) -> str:
    """A hash that changes with the files (name, size, time) and with every setting that the folder depends on."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sources.files]
    taken = [Path(config.tokenizer.source, name) for name in TAKEN] if config.tokenizer.source else []
    taken += [Path(config.data.chat_template)] if config.data.chat_template else []
    hashes = [hash_file(path) for path in taken if path.is_file()]
    shape = [RECIPE, stats, list(sources.train), shaping_settings(config), hashes]
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _write(config: Config, sources: Sources, folder: Path, work: Path, engine: Engine) -> dict[str, Any]:
    if config.data.format != "text" and config.tokenizer.source is None:
        problem, remedy = "needs the tokenizer of a checkpoint", "name it with --tokenizer"
        raise UserError("data.format", problem, remedy, value=config.data.format)
    with progress("Reading", sum(file.stat().st_size for file in sources.files)) as advance:
        corpus = Corpus(config, sources, work, engine, advance)
    named = ", ".join(sources.train)
    for split, size in corpus.sizes.items():
        if not size:
            source = config.data.val if split == "val" and config.data.val else named
            raise UserError(
                source, f"has no text, or too little to hold some out, for the {split} split", "give more text"
            )
    if not (work / _LEARNED).is_dir():
        _save_tokenizer(*_tokenizer(config, corpus), work / _LEARNED)
    tokenizer, ids = Tokenizer.load(work / _LEARNED), TokenIds.read(work / _LEARNED)
    with progress("Encoding", sum(corpus.sizes.values())) as advance:
        splits: dict[str, dict[str, Any]] = {}
        for name, part in corpus.parts.items():
            if config.data.format == "text":
                splits[name] = encode(work / _LEARNED, ids, part, work, folder, name, engine, advance)
            else:
                splits[name] = encode_chats(tokenizer, ids, part.read(), folder, name, advance)
    length, tokens = config.sequence_length, splits["train"]["tokens"]
    if tokens <= length and config.data.format == "text":
        raise UserError(
            named,
            f"its {tokens} training tokens are too few for sequences of {length}",
            "give more text, or set a shorter training.sequence_length",
        )
    for file in (work / _LEARNED).iterdir():
        shutil.copyfile(file, folder / file.name)
    dtype = token_type(tokenizer).str
    return {"vocab_size": tokenizer.vocab_size, "dtype": dtype, "splits": splits, **corpus.card}


def _save_tokenizer(tokenizer: Tokenizer, ids: TokenIds, place: Path) -> None:
    """Write the tokenizer's folder whole."""
    new = place.with_name(f"{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    tokenizer.save(new)
    (new / GENERATION_FILE).write_text(json.dumps(ids.json(), indent=2) + "\n", "utf-8")
    new.rename(place)


def _tokenizer(config: Config, corpus: Corpus) -> tuple[Tokenizer, TokenIds]:
    """The tokenizer, with the ids that begin and end texts; for conversations with a chat template."""
    if config.tokenizer.source is None:
        tokenizer = _trained(config, corpus.parts["train"].read(), corpus.sizes["train"])
        return tokenizer, TokenIds.of(tokenizer)
    tokenizer, ids = _existing(config.tokenizer)
    if config.data.format == "text":
        return tokenizer, ids
    tokenizer.config["chat_template"] = _template(config.data.chat_template, tokenizer)
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    tokenizer.config.setdefault("eos_token", names.get(min(ids.eos), ""))
    return tokenizer, with_turn_end(tokenizer, ids)


def _existing(config: TokenizerConfig) -> tuple[Tokenizer, TokenIds]:
    """The tokenizer of a checkpoint, with the ids that begin and end its texts."""
    folder = Path(config.source or "")
    if "vocab_size" in config.model_fields_set and not is_default(config, "vocab_size"):
        problem = "has no effect, because the tokenizer is that of tokenizer.source"
        raise UserError("tokenizer.vocab_size", problem, "remove it", value=config.vocab_size)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            "tokenizer.source", "is not a checkpoint", "name a folder with tokenizer.json", value=config.source
        )
    return Tokenizer.load(folder), TokenIds.read(folder)


def _template(file: str | None, tokenizer: Tokenizer) -> str:
    """The chat template in a file, else the tokenizer's own, else a plain one."""
    if file is None:
        return template_of(tokenizer.config) or PLAIN_TEMPLATE
    try:
        return Path(file).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError("data.chat_template", f"cannot be read ({error})", "name a text file", value=file) from None


def _trained(config: Config, documents: Iterable[Document], size: int) -> Tokenizer:
    wanted = config.tokenizer.vocab_size
    with progress("Learning the tokenizer", min(LEARN_BYTES, size)) as advance:

        def texts() -> Iterator[str]:
            for part in _sampled(documents, LEARN_BYTES / size):
                yield part
                advance(len(part.encode()))

        def waiting(seconds: float) -> None:
            advance(0, f"merging pairs, {seconds:.0f} s")

        tokenizer = train_tokenizer(texts(), wanted, waiting)
    if tokenizer.vocab_size != wanted:
        logger.warning(
            "The text has enough pairs for only %d vocabulary entries, not %d.", tokenizer.vocab_size, wanted
        )
    return tokenizer


def _sampled(documents: Iterable[Document], fraction: float) -> Iterator[str]:
    """Parts of the documents, spread evenly over all of them; all of them if the fraction is 1 or more."""
    due = 0.0
    for part in (part for document in documents for part in document.parts):
        due = min(1.0, due) + fraction
        if due >= 1:
            due -= 1
            yield part
