"""Choose held-out text: whole documents at random, identical ones together; if those are too few, the end of one.

The split is one number per document: how many of its bytes, from its start, are trained on. The rest is held out.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate

import numpy as np
import regex

from kiara.data.bad_text import BadTextError
from kiara.data.documents import Document

TOLERANCE = 0.1  # relative to the requested amount
_WINDOW = 1 << 16  # bytes on either side of the aim in which to look for a place to cut
_LINES, _CHARACTERS = r"\n|\r(?!\n)", r"\X"
_WORDS = r"\s++(?![\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}])"  # what follows does not combine with the space


def measure(documents: Iterable[Document], bad: Counter[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of each document, int64, 0 if it is blank; and a hash of its text, uint64.

    bad: counts the documents that are not text, by reason, and gives them 0 bytes; None raises BadTextError instead.
    """
    sizes, hashes = array("q"), array("Q")
    for document in documents:
        digest, size, blank = hashlib.blake2b(digest_size=8), 0, True
        try:
            for part in document.parts:
                data = part.encode()
                digest.update(data)
                size += len(data)
                blank = blank and not part.strip()
        except BadTextError as error:
            if bad is None:
                raise
            bad[error.reason] += 1
            blank = True
        sizes.append(0 if blank else size)
        hashes.append(int.from_bytes(digest.digest(), "little"))
    return np.array(sizes, dtype=np.int64), np.array(hashes, dtype=np.uint64)


def divide(
    sizes: np.ndarray,
    hashes: np.ndarray,
    fraction: float,
    seed: int,
    open_document: Callable[[int], Document] | None,
) -> np.ndarray:
    """Bytes of each document to train on, int64. Identical documents share their split.

    open_document: by its index, to cut it; None if documents must stay whole.
    """
    heads, (whole,) = sizes.copy(), np.nonzero(sizes)
    _, group_of, copies = np.unique(hashes[whole], return_inverse=True, return_counts=True)
    totals = np.bincount(group_of, weights=sizes[whole], minlength=len(copies)).astype(np.int64)
    chosen, missing = hold_out(totals, fraction, seed)
    if missing > 0:
        aim = float(totals.sum()) * fraction
        cut = int(np.where(chosen, -1, totals).argmax())
        members = whole[group_of == cut]
        size = int(sizes[members[0]])
        slack = TOLERANCE * aim / copies[cut]
        at = None
        if open_document is not None:
            at = cut_place(open_document(int(members[0])), size, size - missing / copies[cut], slack)
        if at is not None:
            heads[members] = at
        elif not chosen.any() and len(totals) > 1:
            chosen[totals.argmin()] = True
    heads[whole[chosen[group_of]]] = 0
    return heads


def hold_out(sizes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, float]:
    """Choose documents at random for `fraction` of the bytes: a bool for each size, and how many bytes are missing.

    If whole documents cannot reach it, only `fraction` of the small ones is held out, so that a cut of a large one
    supplies the missing bytes, instead of all small ones being held out.
    """
    aim, order = float(sizes.sum()) * fraction, np.random.default_rng(seed).permutation(len(sizes))
    chosen = _whole(sizes, order, aim)
    if sizes[chosen].sum() < (1 - TOLERANCE) * aim:
        small = sizes <= (1 + TOLERANCE) * aim
        chosen = _whole(sizes, order[small[order]], float(sizes[small].sum()) * fraction)
    held = float(sizes[chosen].sum())
    return chosen, (aim - held if held < (1 - TOLERANCE) * aim else 0.0)


def _whole(sizes: np.ndarray, order: np.ndarray, aim: float) -> np.ndarray:
    chosen, held = np.zeros(len(sizes), dtype=bool), 0
    for i in order:
        if held >= aim:
            break
        if held + sizes[i] <= (1 + TOLERANCE) * aim:
            chosen[i] = True
            held += int(sizes[i])
    return chosen


def cut_place(document: Document, size: int, aim: float, slack: float) -> int | None:
    """Byte at which to cut near `aim`: after a line or else a word, at most `slack` bytes away, or else a character.

    A character is an extended grapheme cluster (Unicode Annex 29). None if there is only one.
    """
    reach = int(min(max(slack, 256), _WINDOW))
    text, start = _window(document.parts, int(aim) - reach, int(aim) + reach)
    places = np.array([*accumulate((len(character.encode()) for character in text), initial=start)])
    for pattern, most in ((_LINES, slack), (_WORDS, slack), (_CHARACTERS, np.inf)):
        ends = places[[match.end() for match in regex.finditer(pattern, text)]]
        inside = (ends > 0) & (ends < places[-1])  # a match at the window's edge may continue beyond it
        distances = np.where(inside, np.abs(ends - aim), np.inf)
        if len(distances) and distances.min() <= min(most, size):
            return int(ends[distances.argmin()])
    return None


def _window(parts: Iterable[str], low: int, high: int) -> tuple[str, int]:
    """The text between two byte offsets, cut to whole code points, and the byte offset at which it starts."""
    kept, begun = bytearray(), 0
    first = None
    for part in parts:
        data = part.encode()
        if begun + len(data) > low and begun < high:
            first = max(0, low - begun) + begun if first is None else first
            kept += data[max(0, low - begun) : high - begun]
        begun += len(data)
    text = bytes(kept).decode(errors="ignore")
    return text, (first or 0) + _skipped(kept)


def _skipped(data: bytearray) -> int:
    """Number of bytes before the first one that begins a code point."""
    return next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def trained(documents: Iterable[Document], sizes: np.ndarray, heads: np.ndarray) -> Iterator[Document]:
    """The documents to train on; of a cut one, its head."""
    for document, size, head in zip(documents, sizes.tolist(), heads.tolist(), strict=False):
        if head:
            yield document if head == size else replace(document, parts=_first(document.parts, head))


def held_out(documents: Iterable[Document], sizes: np.ndarray, heads: np.ndarray) -> Iterator[Document]:
    """The held-out documents; of a cut one, its end."""
    for document, size, head in zip(documents, sizes.tolist(), heads.tolist(), strict=False):
        if head < size:
            yield replace(document, parts=_after(document.parts, head)) if head else document


def _first(parts: Iterable[str], left: int) -> Iterator[str]:
    for part in parts:
        data = part.encode()
        if data[:left]:
            yield data[:left].decode()
        left -= len(data)
        if left <= 0:
            return


def _after(parts: Iterable[str], left: int) -> Iterator[str]:
    for part in parts:
        data = part.encode()
        if data[left:]:
            yield data[left:].decode()
        left = max(0, left - len(data))
