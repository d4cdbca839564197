"""Train the byte-level BPE that `kiara_runtime.tokens.tokenizer` uses."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO

import regex

from kiara_runtime.errors import UserError
from kiara_runtime.tokens import END_OF_TEXT, SPLIT_PATTERN, Tokenizer, byte_characters

# Merges are learned from at most so many bytes of text, of distinct pieces, and of distinct long pieces; more hardly
# changes them. The learner needs about 80 bytes of memory for each byte of the latter two.
LEARN_BYTES, LEARN_DIFFERENT_BYTES, LEARN_LONG_BYTES = 1 << 26, 1 << 24, 1 << 22
# Characters. Longer runs of one kind are split for learning, whose time is quadratic in their length.
LONGEST_PIECE = 256
_BOUNDED_PATTERN = SPLIT_PATTERN.replace("+", f"{{1,{LONGEST_PIECE}}}").replace("*", f"{{0,{LONGEST_PIECE}}}")
_KEPT_WORDS = 1 << 18
_PIECES, _LONG_PIECES = regex.compile(r"\p{L}+|[^\s\p{L}]+"), regex.compile(r"\p{L}{49,}|[^\s\p{L}]{49,}")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, waiting: Callable[[float], None] = lambda seconds: None
) -> Tokenizer:
    """Learn merges until the vocabulary has `vocab_size` entries, special tokens included.

    Text with too few pairs to merge gives a smaller vocabulary; it is padded to a multiple of 64
    with reserved special tokens, so that every row of the model's embedding has a token.

    texts: each must fit in memory and is split separately. waiting: called twice a second with the seconds since all
    texts were read.
    """
    settings = {"pattern": _BOUNDED_PATTERN, "vocab_size": vocab_size - 1}  # END_OF_TEXT follows
    tokens = _in_merge_order(_learn(chain([settings], _enough(texts), [None]), waiting))
    reserved = -(len(tokens) + 1) % 64
    special = [END_OF_TEXT, *(f"<|reserved_{i}|>" for i in range(reserved))]
    return Tokenizer.from_merges(tokens, {name: len(tokens) + i for i, name in enumerate(special)})


def _enough(texts: Iterable[str]) -> Iterator[str]:
    """The texts up to the limits on what merges are learned from."""
    left, different, long = LEARN_BYTES, LEARN_DIFFERENT_BYTES, LEARN_LONG_BYTES
    words, pieces = set[str](), set[str]()
    for text in texts:
        left -= len(text.encode())
        text = text if long > 0 else _LONG_PIECES.sub("\n", text)
        yield text
        new_words = set(text.split()) - words
        if len(words) > _KEPT_WORDS:  # only a cache of words seen before
            words.clear()
        words |= new_words
        new = set(_PIECES.findall(" ".join(new_words))) - pieces
        pieces |= new
        long_bytes = sum(len(piece.encode()) for piece in new if _LONG_PIECES.match(piece))
        long -= long_bytes
        different -= sum(len(piece.encode()) for piece in new) - long_bytes
        if left <= 0 or different <= 0:
            return


def _learn(lines: Iterable[object], waiting: Callable[[float], None]) -> list[list[str]]:
    """Send the lines to `kiara.data.merges`; returns the merges."""
    with _learner() as (write, read):
        for line in lines:
            write.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        write.flush()
        started = time.monotonic()
        while not select.select([read], [], [], 0.5)[0]:
            waiting(time.monotonic() - started)
        return json.loads(read.read())


@contextmanager
def _learner() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Pipes to and from a learning process, which is killed when the block ends."""
    program = [sys.executable, "-P", str(Path(__file__).with_name("merges.py"))]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        yield process.stdin, process.stdout
    except (BrokenPipeError, json.JSONDecodeError):
        raise UserError(
            "tokenizer",
            f"its training process was killed ({process.wait()}), perhaps for lack of memory",
            "close other programs, or give less text",
        ) from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()


def _in_merge_order(merges: list[list[str]]) -> list[bytes]:
    to_byte = {character: byte for byte, character in enumerate(byte_characters())}
    tokens = [bytes([byte]) for byte in range(256)]
    merged = (bytes(to_byte[character] for character in left + right) for left, right in merges)
    return list(dict.fromkeys([*tokens, *merged]))  # two merges may make the same token: it keeps the first rank
