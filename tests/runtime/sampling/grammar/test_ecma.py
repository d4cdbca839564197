"""ECMA 262 patterns against Node: every match here is one there, and the reverse where regex engines agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import need

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.constraint import constrain
from kiara_runtime.sampling.grammar.ecma import rust_expression
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

BYTES = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})
NODE = """
const {patterns, texts} = JSON.parse(require('fs').readFileSync(0));
const made = (pattern) => { try { return new RegExp(pattern, 'u') } catch { return new RegExp(pattern) } };
console.log(JSON.stringify(patterns.map((pattern) => texts.map((text) => made(pattern).test(text)))));
"""
SAME = [
    "", "^", "a$", "^a|b$", "(^a|b$)", "a{2}", "a{1,}", "(?:ab)+", "(?<name>a)b", "a*?b", r"\.", r"\/", r"\-", "[a-c]",
    "[^a-c]", "[^]", r"[\]a]", "[-a]", "[a-]", "[+--]", "[a&&b]", "[a~~b]", "[[a]", "[[:alpha:]]", "[^[a]",
    r"\x41", r"\u0041", r"[\x41-\x43]", r"\u{1F600}", r"\ud83d\ude00", r"[\ud83d\ude00é]", r"[\u{1F600}]",
    "^.$", "^..$",    r"\t", r"\n", r"[\n\t]", r"\$", r"^\^", r"\p{Lu}", r"\P{L}", r"[\p{L}-]", "^[é-ü]$", "x|", "#",
    "^ $", r"\\", r"[\\]",    r"\{a\}", r"^\(a\)$", "^[.]$", "^[$^]", "[(]", "😀", "^[😀é]$",
]  # fmt: skip
CLASSES = [
    r"\d",
    r"\D",
    r"\w",
    r"\W",
    r"\s",
    r"\S",
    r"[\d.]",
    r"[^\d]",
    r"[^\w-]",
    r"[\W]",
    r"[^\W]",
    r"[^\s]",
    r"[^\S]",
]
TEXTS = [
    "", "a", "b", "ab", "aab", "xa", "A", "AB", "é", "ü", "^", "$", ".", "-", "+", ",", "&", "&&", "~", "[", "]", ":",
    "\\", "/", "(", "(a)", "{a}", "x", "a]", "l:]", "😀", "a😀", " ", "\t", "\n", "\r", "\u2028",
    "\u00a0", "#", "1", "_",
]  # fmt: skip
STRANGE = ["٣", "\ufeff", "\u0085", "\u001c", "é", "½", "東", "\u3000", "\u180e", "ª"]


def _node(patterns: list[str], texts: list[str]) -> list[list[bool]]:
    need(shutil.which("node") is not None, "Node.js")
    given_ = json.dumps({"patterns": patterns, "texts": texts})
    return json.loads(
        subprocess.run(["node", "-e", NODE], input=given_, capture_output=True, text=True, check=True).stdout
    )


def _matches(pattern: str, text: str) -> bool:
    schema = json.dumps({"type": "string", "pattern": pattern})
    constraint = constrain(BYTES, 257, frozenset({256}), json_schema=schema)
    try:
        for byte in json.dumps(text, ensure_ascii=False).encode():
            constraint.accept(byte)
    except ValueError:
        return False
    return bool(constraint.allowed()[256])


def test_a_pattern_matches_as_in_node() -> None:
    for pattern, expected in zip(SAME, _node(SAME, TEXTS), strict=True):
        found = [_matches(pattern, text) for text in TEXTS]
        assert found == expected, (pattern, [text for text, a, b in zip(TEXTS, found, expected, strict=True) if a != b])


def test_a_character_class_is_what_node_and_python_agree_on() -> None:
    writable = [text for text in TEXTS + STRANGE if text != "\u001c"]
    for pattern, ecma in zip(CLASSES, _node(CLASSES, writable), strict=True):
        agreed = [bool(a and re.search(pattern, text)) for text, a in zip(writable, ecma, strict=True)]
        assert [_matches(pattern, text) for text in writable] == agreed, pattern


PARTS = st.sampled_from(
    [
        "a",
        "b",
        "é",
        ".",
        "[ab]",
        "[^a]",
        "[a-c-]",
        "[^]",
        "(a|b)",
        "(?:a|é)",
        "a*",
        "b?",
        "[^b]{2}",
        r"\.",
        r"\x61",
        "[.&&]",
    ]
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(PARTS, max_size=4).map("".join), min_size=1, max_size=20), st.booleans())
def test_random_patterns_match_as_in_node(patterns: list[str], whole: bool) -> None:
    patterns = [f"^{pattern}$" if whole else pattern for pattern in patterns]
    texts = ["", "a", "b", "é", "ab", "ba", "aa.", "&", "c-", "a\nb", "éé", "bbb"]
    for pattern, expected in zip(patterns, _node(patterns, texts), strict=True):
        assert [_matches(pattern, text) for text in texts] == expected, pattern


@pytest.mark.parametrize(
    "pattern", ["[]", "[b-a]", "[a", "a{", "{", r"\1", r"(a)\k<n>", r"\bword", r"\Ba", r"\a", r"\Z", "(?=a)", "\\"]
)  # fmt: skip
def test_patterns_without_an_equivalent_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        rust_expression(pattern)
    with pytest.raises(UserError, match=r"^json_schema\.items\.pattern: "):
        constrain(BYTES, 257, frozenset({256}), json_schema=json.dumps({"items": {"pattern": pattern}}))
