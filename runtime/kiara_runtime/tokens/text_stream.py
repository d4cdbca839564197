"""Turns tokens into text as they arrive: whole characters only, and never a part of a stop sequence."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed token ids, receive the text that is certain.

    Held back are the bytes of an incomplete character, and text that may become a stop sequence. The text
    ends before the stop sequence that is complete first, wherever token boundaries are; `stop_sequence` is that one
    from then on.
    """

    def __init__(self, token_bytes: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self._token_bytes, self._stop = token_bytes, stop
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: str = ""
        self._skipped = 0
        self.stop_sequence: str | None = None

    def skip(self, count: int) -> None:
        """Leave out the first `count` bytes of what follows: the prompt has them already."""
        self._skipped = count

    def feed(self, token: int) -> str:
        # A model's vocabulary may be padded beyond the tokenizer's: such an id has no text.
        text = self._token_bytes[token] if token < len(self._token_bytes) else b""
        if self._skipped:
            skipped, self._skipped = text[: self._skipped], max(0, self._skipped - len(text))
            text = text[len(skipped) :]
        return self._release(self._utf8.decode(text))

    def flush(self) -> str:
        """The rest of the text, once no more tokens come; an incomplete character becomes U+FFFD."""
        text = self._release(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    @property
    def stopped(self) -> bool:
        return self.stop_sequence is not None

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stop if stop in text]
        _, cut, self.stop_sequence = min(found, default=(0, len(text) - self._may_begin(text), None))
        self._held = text[cut:]
        return text[:cut]

    def _may_begin(self, text: str) -> int:
        """Length of the longest suffix of `text` that starts a stop sequence."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
