"""Find documents that repeat an earlier one, word for word or nearly.

Nearly: at least 0.8 of the five-word runs of two documents are the same (their Jaccard similarity, estimated by
MinHash, Broder 1997, and found by locality-sensitive hashing). Memory grows by about 2 KB for each document kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterable

import numpy as np

from kiara.data.documents import Document
from kiara_runtime.errors import UserError

SIMILARITY = 0.8
_PERMUTATIONS = 128
_RUN = 5  # words


def equal_copies(sizes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """For each document, whether an earlier one has the same text; blank ones do not count. bool (documents,)."""
    copies = np.zeros(len(sizes), dtype=bool)
    (kept,) = np.nonzero(sizes)
    _, first = np.unique(hashes[kept], return_index=True)
    copies[kept] = True
    copies[kept[first]] = False
    return copies


def near_copies(documents: Iterable[Document], sizes: np.ndarray) -> np.ndarray:
    """For each document of positive size, whether an earlier one is nearly the same. bool (documents,)."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError:
        raise UserError("data.dedupe", "near needs the package datasketch", "pip install 'kiara-slm[data]'") from None
    index, copies = MinHashLSH(threshold=SIMILARITY, num_perm=_PERMUTATIONS), np.zeros(len(sizes), dtype=bool)
    kept: dict[Hashable, MinHash] = {}
    for number, (document, size) in enumerate(zip(documents, sizes.tolist(), strict=False)):
        if not size:
            continue
        sketch = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        for part in document.parts:
            sketch.update_batch(_runs(part))
        copies[number] = any(kept[key].jaccard(sketch) >= SIMILARITY for key in index.query(sketch))
        if not copies[number]:
            index.insert(number, sketch)
            kept[number] = sketch
    return copies


def _runs(text: str) -> list[bytes]:
    words = text.split()
    return [" ".join(words[i : i + _RUN]).encode() for i in range(max(1, len(words) - _RUN + 1))]
