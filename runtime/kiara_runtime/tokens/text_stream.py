"""Tokens to text as they come: whole characters only, and never a part of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed token ids, receive the text that is certain.

    Held back are bytes that do not yet make a character and text that may yet become a stop text. The
    text ends before the stop text that is complete first, wherever the borders of tokens lie; `stopped`
    tells when.
    """

    def __init__(self, token_bytes: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self._token_bytes, self._stop = token_bytes, stop
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: str = ""
        self._skipped = 0
        self.stopped: bool = False

    def skip(self, count: int) -> None:
        """Leave out the first bytes of what comes: they stand in the prompt already."""
        self._skipped = count

    def feed(self, token: int) -> str:
        # A model's table may be padded beyond the tokenizer: such an id stands for no text.
        text = self._token_bytes[token] if token < len(self._token_bytes) else b""
        if self._skipped:
            skipped, self._skipped = text[: self._skipped], max(0, self._skipped - len(text))
            text = text[len(skipped) :]
        return self._release(self._utf8.decode(text))

    def flush(self) -> str:
        """The rest, once no more tokens come; an unfinished character becomes U+FFFD."""
        text = self._release(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        self.stopped = bool(found)
        cut = min(found)[1] if found else len(text) - self._may_begin(text)
        self._held = text[cut:]
        return text[:cut]

    def _may_begin(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
