"""Texts of the formats that the served OpenAPI document names and JSON Schema does not, for Schemathesis to send."""

import schemathesis
from hypothesis import strategies as st

_WORDS = st.from_regex(r"[a-z0-9 .,:+*-]{1,12}", fullmatch=True).map('"{}"'.format)
_PARTS = st.one_of(_WORDS, st.tuples(_WORDS, st.sampled_from("?*+")).map("".join))
_CHOICES = st.lists(st.lists(_PARTS, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=4).map(" | ".join)

schemathesis.openapi.format("lark", _CHOICES.map("start: {}\n".format))
