"""The text of a configuration, measured: which documents are used, and what each split reads of them.

Each document has a number of bytes; those that are dropped have none, and are skipped without being read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from kiara.config import Config, DataConfig, is_default
from kiara.console import logger
from kiara.data.documents import Reader
from kiara.data.duplicates import equal_copies, near_copies
from kiara.data.engines import Engine
from kiara.data.formats import has_records
from kiara.data.measuring import measured
from kiara.data.part import Part
from kiara.data.pieces import Pieces
from kiara.data.sources import resolve_source
from kiara.data.split import TOLERANCE, divide, hold_out
from kiara_runtime.errors import UserError

COPY, IN_VAL, BEYOND = "a copy of another", "also in data.val", "beyond the share of its source in data.mix"


@dataclass(frozen=True)
class Sources:
    """The files of a configuration. train: by source."""

    train: dict[str, list[Path]]
    val: list[Path]

    @classmethod
    def of(cls, config: Config) -> Sources:
        """Find the files; raises UserError for settings that have no effect on them."""
        data = config.data
        names = list(data.mix) or [data.train]
        if data.mix and not is_default(data, "train"):
            raise UserError("data.train", "has no effect together with data.mix", "set only one", value=data.train)
        if wrong := [weight for weight in data.mix.values() if not 0 < weight < float("inf")]:
            raise UserError("data.mix", "is not a weight", "give each source a positive number", value=wrong[0])
        found = cls({name: resolve_source(name) for name in names}, _val_files(data.val) if data.val else [])
        found._check(data)
        return found

    @property
    def files(self) -> list[Path]:
        return [*chain(*self.train.values()), *self.val]

    def _check(self, data: DataConfig) -> None:
        if data.format == "text":
            for name in ("chat_template", "overlong"):
                if not is_default(data, name):
                    raise UserError(f"data.{name}", "has no effect on text", "set data.format=chat, or remove it")
        for name in ("val_fraction", "split_seed"):
            if data.val and not is_default(data, name):
                problem = f"{getattr(data, name)} has no effect together with data.val"
                raise UserError(f"data.{name}", problem, "set only one")
        if not is_default(data, "text_field") and not any(map(has_records, self.files)):
            problem = "has no effect, because no file has records (JSON lines, Parquet)"
            raise UserError("data.text_field", problem, "remove it", value=data.text_field)


def _val_files(source: str) -> list[Path]:
    try:
        return resolve_source(source)
    except UserError as error:
        raise error.inside("data.val") from None


class Corpus:
    """Documents measured, dropped and split.

    parts: what each split has of them. card: the sources, what was dropped and why.
    """

    def __init__(
        self,
        config: Config,
        sources: Sources,
        work: Path,
        engine: Engine = "local",
        advance: Callable[[int], None] = lambda size: None,
    ) -> None:
        """work: a folder for pieces, of which those that are there already are not made again."""
        self._data = data = config.data
        self._reader = Reader(data.text_field, data.format, replace=data.bad_text == "replace")
        self._dropped = Counter[str]()
        files, lenient = [*chain(*sources.train.values())], data.bad_text != "fail"
        found = measured(Pieces(work, "measured"), self._reader, sources.files, lenient, engine, advance)
        self._bad, self._replaced = found.bad, found.replaced
        self._begins = np.cumsum([0, *_sums(found.counts, [len(names) for names in sources.train.values()])])
        end = self._begins[-1]
        train = Part(self._reader, files, found.counts[: len(files)], found.sizes[:end], found.sizes[:end], False)
        hashes = found.hashes[:end]
        if sources.val:
            sizes = found.sizes[end:]
            val = Part(self._reader, sources.val, found.counts[len(files) :], sizes, np.zeros_like(sizes), True)
            self._split_given(train, hashes, val, found.hashes[end:])
        else:
            self._split_held_out(train, hashes)
        self.sizes = {name: int(part.bytes.sum()) for name, part in self.parts.items()}
        if not sources.val:
            _warn_of_other_fraction(self.sizes, data.val_fraction)
        self.card = self._card(list(sources.train), train.sizes)

    def _card(self, names: list[str], sizes: np.ndarray) -> dict[str, Any]:
        parts = [sizes[begin:end] for begin, end in zip(self._begins, self._begins[1:], strict=False)]
        used = [
            {"source": name, "documents": int(np.count_nonzero(part)), "bytes": int(part.sum())}
            for name, part in zip(names, parts, strict=True)
        ]
        dropped = {**self._bad, **self._dropped}
        return {"sources": used, "dropped": dropped, "replaced": self._replaced}

    def _split_given(self, train: Part, hashes: np.ndarray, val: Part, val_hashes: np.ndarray) -> None:
        if self._data.dedupe == "none":
            _warn_of_shared(hashes[train.sizes > 0], val_hashes[val.sizes > 0])
        else:
            self._drop(IN_VAL, train.sizes, np.isin(hashes, val_hashes[val.sizes > 0]))
        self._choose(train, hashes)
        self.parts = {"train": train, "val": val}

    def _split_held_out(self, train: Part, hashes: np.ndarray) -> None:
        self._choose(train, hashes)
        fraction, seed = self._data.val_fraction, self._data.split_seed
        whole = self._data.format != "text"
        heads = divide(train.sizes, hashes, fraction, seed, None if whole else lambda i: next(train.stream(i)))
        self.parts = {"train": replace(train, heads=heads), "val": replace(train, heads=heads, after=True)}

    def _choose(self, train: Part, hashes: np.ndarray) -> None:
        """Drop repeated documents, and those beyond the share of their source, by setting their sizes to 0."""
        sizes = train.sizes
        if self._data.dedupe != "none":
            self._drop(COPY, sizes, equal_copies(sizes, hashes))
        if self._data.dedupe == "near":
            self._drop(COPY, sizes, near_copies(train.stream(0), sizes))
        if self._data.mix:
            self._mix(sizes)

    def _drop(self, reason: str, sizes: np.ndarray, which: np.ndarray) -> None:
        which = which & (sizes > 0)
        if which.any():
            self._dropped[reason] += int(which.sum())
            sizes[which] = 0

    def _mix(self, sizes: np.ndarray) -> None:
        """As much text as the scarcest source allows, each source with its share of it."""
        weights = self._data.mix
        slices = [slice(begin, end) for begin, end in zip(self._begins, self._begins[1:], strict=False)]
        bytes_of = {name: int(sizes[part].sum()) for name, part in zip(weights, slices, strict=True)}
        for name, has in bytes_of.items():
            if not has:
                raise UserError(f"data.mix: {name}", "has no text", "leave it out")
        unit = min(bytes_of[name] / weight for name, weight in weights.items())
        for (name, weight), part in zip(weights.items(), slices, strict=True):
            wanted = unit * weight / bytes_of[name]
            if wanted < 1:
                chosen, missing = hold_out(sizes[part], wanted, self._data.split_seed)
                if missing:
                    chosen |= not chosen.any()  # rather all of it than none
                    logger.warning("data.mix: the documents of %s are too long for its exact share.", name)
                beyond = np.zeros(len(sizes), dtype=bool)
                beyond[part] = ~chosen
                self._drop(BEYOND, sizes, beyond)


def _sums(counts: list[int], lengths: list[int]) -> list[int]:
    """Sums of consecutive runs of counts."""
    left = iter(counts)
    return [sum(islice(left, length)) for length in lengths]


def _warn_of_other_fraction(sizes: dict[str, int], fraction: float) -> None:
    train, val = sizes["train"], sizes["val"]
    if train and val and abs(val / (train + val) / fraction - 1) > TOLERANCE + 1e-9:
        logger.warning(
            "%.3g %% of the text is held out, not the %.3g %% of data.val_fraction: documents allow no other split.",
            100 * val / (train + val), 100 * fraction,
        )  # fmt: skip


def _warn_of_shared(train: np.ndarray, val: np.ndarray) -> None:
    if shared := int(np.isin(val, train).sum()):
        logger.warning(
            "%s of the %s documents of data.val are also in data.train, so validation partly measures memorisation.",
            f"{shared:,}", f"{len(val):,}",
        )  # fmt: skip
