"""The text stream against cutting the whole text at once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.tokens.text_stream import TextStream

TOKENS = [bytes([byte]) for byte in range(256)] + [b"ab", b"ba", b"abc", "é日".encode(), "👩🏽‍🚀".encode()[:5], b"c\n"]


def _cut(text: str, stop: list[str]) -> str:
    """Read character by character; end before the first complete stop sequence."""
    for end in range(1, len(text) + 1):
        for candidate in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(candidate):
                return text[: end - len(candidate)]
    return text


def _stream(tokens: list[int], stop: list[str]) -> str:
    stream, out = TextStream(TOKENS, stop), ""
    for token in tokens:
        out += stream.feed(token)
        if stream.stopped:
            return out + stream.flush()
    return out + stream.flush()


SPELLED = st.lists(st.sampled_from([97, 98, 99, 10, 0xC3, 0xA9, 0xE6, 256, 257, 258, 259, 260, 261]), max_size=25)
STOPS = st.lists(st.text("abcé日\n", min_size=1, max_size=4), max_size=4)


@given(SPELLED, STOPS)
@settings(max_examples=1000)
def test_pieces_join_to_the_text_cut_at_the_first_stop_sequence(tokens: list[int], stop: list[str]) -> None:
    whole = b"".join(TOKENS[token] for token in tokens).decode("utf-8", "replace")
    assert _stream(tokens, stop) == _cut(whole, stop)


def test_characters_come_whole_and_stop_sequences_never_appear() -> None:
    stream = TextStream(TOKENS, ["\nclass"])
    assert [stream.feed(byte) for byte in "é\ncl.".encode()] == ["", "é", "", "", "", "\ncl."]
    assert [stream.feed(byte) for byte in b"x\nclass y"] == ["x", *[""] * 8]
    assert stream.stopped and stream.flush() == ""
