"""Training sequences and batches of them, from a split's memory-mapped tokens.

A batch is a pure function of (seed, step, row), so a resumed run sees the same data, and several processes share the
rows of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from kiara_runtime.errors import UserError

GIVEN = "given"  # name of a split made of text given to a command


@dataclass(frozen=True)
class Examples:
    """Training sequences: ids and targets, int64 (B, S). A target of -100 does not count.

    segments: int64 (B, S), or None; tokens of the same number form one text, which sees no other. pairs: the first half
    of the rows are chosen conversations, the second half the rejected ones, in the same order.
    """

    ids: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None = None
    pairs: bool = False

    @property
    def counted(self) -> int:
        """How much the rows count in the mean of a step: their targets, or their pairs."""
        return len(self.ids) // 2 if self.pairs else int((self.targets >= 0).sum())


@dataclass(frozen=True)
class Split:
    """One split of a prepared folder. shards: memory-mapped token arrays.

    text_bytes: UTF-8 bytes of the original text, if known. With a tokenizer that normalises, its tokens can have more
    or fewer.
    """

    name: str
    shards: list[np.ndarray]
    text_bytes: int | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the split's tokens, in hexadecimal."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(shard.tobytes())
        return digest.hexdigest()

    @cached_property
    def tokens(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def parted(self, part: float) -> tuple[Split, Split]:
        """The first `part` (a fraction) of the tokens, and the rest."""
        tokens = np.concatenate(self.shards)
        cut = int(len(tokens) * part)
        return Split(self.name, [tokens[:cut]]), Split(self.name, [tokens[cut:]])

    def windows(self, length: int) -> int:
        """Number of whole windows per epoch, each of `length` inputs and their targets; raises UserError if none."""
        count = self.whole_windows(length)
        if not count:
            shorter = "" if self.name == GIVEN else " or set a shorter training.sequence_length"
            raise UserError(
                f"the {self.name} split",
                f"{self.tokens} tokens are too few for a sequence of {length} and its target",
                f"give more text{shorter}",
            )
        return count

    def whole_windows(self, length: int) -> int:
        """As `windows`, but 0 if there is none."""
        return sum(max(0, (len(shard) - 1) // length) for shard in self.shards)

    @cached_property
    def targets(self) -> int:
        """Number of tokens to predict: all but the first of each shard."""
        return sum(max(0, len(shard) - 1) for shard in self.shards)

    def rests(self, length: int) -> Iterator[np.ndarray]:
        """The rest of each shard after its whole windows: inputs and one more target, int64 (2 to length,)."""
        for shard in self.shards:
            rest = shard[max(0, (len(shard) - 1) // length) * length :]
            if len(rest) > 1:
                yield rest.astype(np.int64)

    def window(self, index: int, length: int) -> np.ndarray:
        """Window `index` in reading order: `length` inputs and one more target, int64 (length + 1,)."""
        for shard in self.shards:
            here = max(0, (len(shard) - 1) // length)
            if index < here:
                return shard[index * length : (index + 1) * length + 1].astype(np.int64)
            index -= here
        raise IndexError(index)

    def batch(self, seed: int, step: int, rows: int, length: int, part: range | None = None) -> np.ndarray:
        """Windows `step * rows` onward of the shuffled epochs, int64 (rows, length + 1). part: only these rows."""
        count = self.windows(length)
        picked: list[np.ndarray] = []
        for row in range(rows) if part is None else part:
            epoch, index = divmod(step * rows + row, count)
            picked.append(self.window(int(order(seed, epoch, count)[index]), length))
        return np.stack(picked)

    def examples(self, seed: int, step: int, rows: int, length: int, part: range | None = None) -> Examples:
        """The sequences of `batch`, (rows, length)."""
        tokens = self.batch(seed, step, rows, length, part)
        return Examples(tokens[:, :-1], tokens[:, 1:])

    def step_targets(self, seed: int, step: int, rows: int, length: int) -> int:
        """Number of targets that count in all rows of a step."""
        return rows * length

    def sequences(self, length: int) -> int:
        """Number of training sequences of an epoch, each of `length` tokens; raises UserError if there is none."""
        return self.windows(length)

    def epoch(self, step: int, rows: int, length: int) -> int:
        """The epoch, from 0, in which `step` begins."""
        return step * rows // self.sequences(length)


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch's sequences."""
    return np.random.default_rng([seed, epoch]).permutation(count)
