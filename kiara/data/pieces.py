"""Work that survives an interruption: pieces, each made by itself and written whole, in a folder beside the result.

A piece is a file of numbers, and a card about it with its hash. One that is not whole is made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiara.console import logger
from kiara.files import MAX_JSON_BYTES
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file, read_bounded_json

Card = dict[str, Any]
_MARK = "fingerprint"


@dataclass(frozen=True)
class Pieces:
    """Pieces of one kind in a folder, numbered from 0."""

    folder: Path
    kind: str

    def data(self, number: int) -> Path:
        """The file with the numbers."""
        return self.folder / f"{self.kind}-{number:06}.bin"

    def write(self, number: int, fill: Callable[[Path], Card]) -> None:
        """Write a piece: `fill` writes the numbers to the path that it is given, and returns the card."""
        data = self.data(number)
        new = data.with_name(f"{data.name}.{os.getpid()}.new")
        card = fill(new)
        card = {**card, "sha256": hash_file(new)}
        new.replace(data)
        new.write_text(json.dumps(card), "utf-8")
        new.replace(data.with_suffix(".json"))

    def card(self, number: int) -> Card:
        return read_bounded_json(self.data(number).with_suffix(".json"), MAX_JSON_BYTES)

    def missing(self, count: int, size: Callable[[int], int], advance: Callable[[int], None]) -> list[int]:
        """Those of the first `count` pieces that are not whole. advance: receives the sizes of the others."""
        numbers: list[int] = []
        for number in range(count):
            if self.whole(number):
                advance(size(number))
            else:
                numbers.append(number)
        return numbers

    def whole(self, number: int) -> bool:
        """Whether the piece was written, and is as it was written."""
        try:
            return hash_file(self.data(number)) == self.card(number)["sha256"]
        except (OSError, UserError, KeyError, ValueError):
            return False


@contextmanager
def work_folder(out: Path, fingerprint: str) -> Iterator[Path]:
    """The folder for the pieces of `out`, whose lock the caller holds; with those of an interrupted attempt.

    Removed when the block ends, unless Ctrl-C or a signal ends it. fingerprint: of all that the pieces depend on; if it
    has changed, none is kept. Raises UserError if the place is taken by a folder of another kind.
    """
    place = out.resolve()
    folder = place.with_name(f".{place.name}.pieces")
    mark = folder / _MARK
    if folder.exists() and not mark.is_file() and any(folder.iterdir()):
        raise UserError(folder, "is in the way, and Kiara did not write it", "move it away")
    if folder.exists() and not (mark.is_file() and mark.read_text("utf-8", "replace") == fingerprint):
        shutil.rmtree(folder)
    elif folder.exists():
        logger.info("Going on after an interruption, with what %s holds.", folder)
    folder.mkdir(exist_ok=True)
    mark.write_text(fingerprint, "utf-8")
    try:
        yield folder
    except Exception:  # such as bad text, or a full disk, which needs the room
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        logger.warning("What is done so far is kept in %s.", folder)
        raise
    shutil.rmtree(folder)
