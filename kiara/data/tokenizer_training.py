"""Training the byte-level BPE. Using it is `kiara_runtime.tokens.tokenizer`'s."""

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

# Merges are learned from this much text at most, from this much of different pieces, and from this much of different
# long pieces: more hardly changes them. The learner's memory goes with the latter two, about 80 bytes a byte.
LEARN_BYTES, LEARN_DIFFERENT_BYTES, LEARN_LONG_BYTES = 1 << 28, 1 << 24, 1 << 22
# A longer run of one kind, in characters, is learned from in parts: that takes time by the square of its length.
LONGEST_PIECE = 256
_BOUNDED_PATTERN = SPLIT_PATTERN.replace("+", f"{{1,{LONGEST_PIECE}}}").replace("*", f"{{0,{LONGEST_PIECE}}}")
_KEPT_WORDS = 1 << 18
_PIECES, _LONG_PIECES = regex.compile(r"\p{L}+|[^\s\p{L}]+"), regex.compile(r"\p{L}{49,}|[^\s\p{L}]{49,}")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, waiting: Callable[[float], None] = lambda seconds: None
) -> Tokenizer:
    """Learn merges until the vocabulary has `vocab_size` entries, special tokens included.

    Text with too few pairs to merge gives a smaller vocabulary; it is filled up to a multiple of 64
    with reserved special tokens, so that every id of the model's table is a real one.

    texts: none longer than memory bears; each is split by itself. waiting: told, now and then, of the seconds since
    all were read.
    """
    settings = {"pattern": _BOUNDED_PATTERN, "vocab_size": vocab_size - 1}  # END_OF_TEXT follows
    tokens = _in_merge_order(_learn(chain([settings], _enough(texts), [None]), waiting))
    reserved = -(len(tokens) + 1) % 64
    special = [END_OF_TEXT, *(f"<|reserved_{i}|>" for i in range(reserved))]
    return Tokenizer.from_merges(tokens, {name: len(tokens) + i for i, name in enumerate(special)})


def _enough(texts: Iterable[str]) -> Iterator[str]:
    """The texts until there is as much as merges are learned from."""
    left, different, long = LEARN_BYTES, LEARN_DIFFERENT_BYTES, LEARN_LONG_BYTES
    words, pieces = set[str](), set[str]()
    for text in texts:
        left -= len(text.encode())
        text = text if long > 0 else _LONG_PIECES.sub("\n", text)
        yield text
        new_words = set(text.split()) - words
        if len(words) > _KEPT_WORDS:  # they only save looking at a word again
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
    """What `kiara.data.merges` answers to the lines."""
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
    """Pipes to and from a process that does not outlive the block."""
    program = [sys.executable, "-P", str(Path(__file__).with_name("merges.py"))]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        yield process.stdin, process.stdout
    except (BrokenPipeError, json.JSONDecodeError):
        raise UserError(
            "tokenizer",
            f"what learns it was ended from outside ({process.wait()}), as where memory is short",
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
