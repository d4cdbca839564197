"""Measures how often different paths through a graph give the same likeliest token.

One prefill is the reference. The cache, chunks, padding, batches and late positions are compared with it, all in the
runtime's own session, so that what is tested is what runs.

Shape letters: S tokens of a sequence, V vocabulary, C context length, L layers, K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine import Session

CHUNK = 48  # does not divide a power of two, so that the last chunk is shorter
BATCH, BATCH_STEPS = 4, 8  # sequences in the padded batch, and joint decode steps after their prompts
PROMPTS, PROMPT_TOKENS = 8, 128  # prompts of which only the last logits are computed, and tokens of the longest
END = 16  # positions at the end of the context

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
Cached = list[NDArray[Any]]  # keys and values of each layer in turn, 2 L arrays (K, S, E)


def in_chunks(session: Session, ids: Ids, chunk: int) -> Logits:
    """Logits (S, V) of ids (S,), with `chunk` tokens per pass: S is one prefill, 1 is single steps."""
    decoder = session.decoder()
    return np.concatenate([decoder.append(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])


def batch_of(ids: Ids) -> list[Ids]:
    """Prefixes of ids (S,) of very different lengths, the shortest little longer than the joint steps."""
    return [ids[: max(BATCH_STEPS + 1, len(ids) // (4 * (i + 1)))] for i in range(BATCH)]


def in_batch(session: Session, rows: Sequence[Ids]) -> list[Logits]:
    """Run sequences of different lengths together: one prompt pass padded on the right, then BATCH_STEPS joint steps.

    Returns the logits (S, V) of each. A batch of one is the same path for a sequence alone.
    """
    cache = session.cache(len(rows))
    starts = [len(row) - BATCH_STEPS for row in rows]
    padded = np.zeros((len(rows), max(starts)), dtype=np.int64)
    for row, ids, start in zip(padded, rows, starts, strict=True):
        row[:start] = ids[:start]
    prompts = cache.run(padded, starts, every=True)
    parts = [[prompt[:start]] for prompt, start in zip(prompts, starts, strict=True)]
    for step in range(BATCH_STEPS):
        ids = np.array([[row[start + step]] for row, start in zip(rows, starts, strict=True)])
        for part, logits in zip(parts, cache.run(ids, [start + step + 1 for start in starts], every=True), strict=True):
            part.append(logits)
    return [np.concatenate(part) for part in parts]


def prompt_ends(ids: Ids) -> list[int]:
    """Lengths of the prompts that `prompts_alone` tries: the shortest, the longest and some in between."""
    return sorted({1, 2, *(len(ids) * i // PROMPTS for i in range(1, PROMPTS + 1))} - {0})


def prompts_alone(session: Session, ids: Ids) -> list[Logits]:
    """Only the last token's logits (1, V) of each prompt, as generation requests them."""
    return [session.decoder()(ids[:end].tolist())[None] for end in prompt_ends(ids)]


def at_the_end(session: Session, past: Cached, ids: Ids, chunk: int) -> Logits:
    """Logits (S, V) at the last S positions of the context, after a cache filled with repeats of `past`.

    A prefill of a long context would take minutes; this tests positions, cache and masks at its end.
    """
    decoder = session.decoder()
    decoder.position = session.architecture.context_length - len(ids)
    for buffer, part in zip(decoder.cache.buffers, past, strict=True):
        for start in range(0, decoder.position, part.shape[1]):
            piece = buffer[0, :, start : min(start + part.shape[1], decoder.position)]
            piece[:] = part[:, : piece.shape[1]]
    return np.concatenate([decoder.append(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])


def cached(session: Session, ids: Ids) -> Cached:
    """The keys and values after one pass over ids (S,)."""
    decoder = session.decoder()
    decoder(ids.tolist())
    return [buffer[0, :, : len(ids)].copy() for buffer in decoder.cache.buffers]


@dataclass(frozen=True)
class PathAgreement:
    """How often each path gives the same likeliest token as a prefill of the same graph, as fractions of 1.

    last_logits: for prompts of which only the last logits are computed, as in every generation.
    batch_exact: whether each sequence in a padded batch has, bit for bit, the logits that it has alone; chunks_exact:
    whether a prompt has the same ones however it is split into passes of two or more tokens.
    """

    last_logits: float
    single_steps: float
    chunked_prefill: float
    padded_batch: float
    end_of_context: float
    batch_exact: bool
    chunks_exact: bool
    positions: int  # compared for single steps and chunks
    prompts: int = 1  # compared for their last logits

    def lowest(self) -> float:
        """The lowest on real text: after a synthetic cache distributions are flat, and rounding often decides."""
        return min(self.last_logits, self.single_steps, self.chunked_prefill, self.padded_batch)


def path_agreement(session: Session, windows: Ids) -> PathAgreement:
    """Compare the paths of a graph with each other. windows: (R, S) of real text."""
    prefills = [_choices(session, ids, len(ids)) for ids in windows]
    short = windows[:, :PROMPT_TOKENS]
    prompts = [logits.argmax(-1) for ids in short for logits in prompts_alone(session, ids)]
    whole = [prefill[None, end - 1] for prefill, ids in zip(prefills, short, strict=True) for end in prompt_ends(ids)]
    rows = batch_of(windows[0])
    together, alone = in_batch(session, rows), [in_batch(session, [row])[0] for row in rows]
    half = windows.shape[1] // 2
    past, end = cached(session, windows[0][half:]), windows[0][:half][:END]
    stepped_end, end_at_once = (at_the_end(session, past, end, chunk).argmax(-1) for chunk in (1, len(end)))
    return PathAgreement(
        last_logits=_agreeing(prompts, whole),
        single_steps=_agreeing([_choices(session, ids, 1) for ids in windows], prefills),
        chunked_prefill=_agreeing([_choices(session, ids, CHUNK) for ids in windows], prefills),
        padded_batch=_agreeing([logits.argmax(-1) for logits in together], [prefills[0]] * len(rows)),
        end_of_context=_agreeing([stepped_end], [end_at_once]),
        batch_exact=all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True)),
        chunks_exact=_chunks_exact(session, short[0]),
        positions=windows.size,
        prompts=len(prompts),
    )


def _chunks_exact(session: Session, ids: Ids) -> bool:
    whole = in_chunks(session, ids, len(ids))
    even = ids[: len(ids) // 6 * 6]  # no pass of a single token at the end
    return all(np.array_equal(in_chunks(session, even, chunk), whole[: len(even)]) for chunk in (2, 6) if len(even))


def _choices(session: Session, ids: Ids, chunk: int) -> Ids:
    """Likeliest tokens (S,) after each of ids; keeping the logits of a window would take a hundred megabytes."""
    decoder = session.decoder()
    parts = (decoder.append(ids[i : i + chunk]).argmax(-1) for i in range(0, len(ids), chunk))
    return np.concatenate(list(parts))


def _agreeing(found: Sequence[Ids], expected: Sequence[Ids]) -> float:
    """Fraction of positions with the same likeliest token; what is expected may be longer."""
    return float(np.concatenate([a == b[: len(a)] for a, b in zip(found, expected, strict=True)]).mean())
