"""Calls of tools: formats read from templates, answers held by the grammar, and read back in pieces of any size."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from constraints import PADDING
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.engine import Piece
from kiara_runtime.errors import UserError
from kiara_runtime.sampling import Constraint, SamplingParams
from kiara_runtime.tokens import END_OF_TEXT, TextStream, Tokenizer
from kiara_runtime.tools import CallReader, Conversation, conversation, gathered, tool_use
from kiara_runtime.tools.call_format import PLAIN, CallFormat, call_format
from kiara_runtime.tools.call_grammar import argument_schema

_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content }}@{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SHOWN = "{% if tools %}{{ tools | tojson }}\n{% endif %}"
_EACH = "{% if m.tool_calls %}{% for c in m.tool_calls %}"
_END = "{% endfor %}{% endif %}"
TEMPLATES = {
    "plain": _TURNS.replace("@", ""),
    "tags": _SHOWN
    + _TURNS.replace(
        "@",
        _EACH + "{{ '\n<tool_call>\n' }}{\"name\": \"{{ c.function.name }}\", "
        "\"arguments\": {{ c.function.arguments | tojson }}}{{ '\n</tool_call>' }}" + _END,
    ),
    "bare": _SHOWN
    + _TURNS.replace(
        "@",
        "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{% set c = m.tool_calls[0].function %}{\"name\": \"{{ c.name }}\", \"parameters\": {{ c.arguments | tojson }}}"
        "{% endif %}",
    ),
    "special": _SHOWN
    + _TURNS.replace(
        "@",
        "{% if m.tool_calls %}<|tool|>[{% for c in m.tool_calls %}{\"name\": \"{{ c.function.name }}\", "
        "\"arguments\": {{ c.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]"
        "{% endif %}",
    ),
    "ids": _SHOWN
    + _TURNS.replace(
        "@",
        "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
        "{{ raise_exception('nine letters') }}{% endif %}{\"name\": \"{{ c.function.name }}\", \"arguments\": "
        "{{ c.function.arguments | tojson }}, \"id\": \"{{ c.id }}\"}{% if not loop.last %}, {% endif %}{% endfor %}]"
        "{% endif %}",
    ),
    "xml": _SHOWN
    + _TURNS.replace(
        "@",
        _EACH + "<call name={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}"
        "</{{ k }}>{% endfor %}</call>" + _END,
    ),
}  # fmt: skip
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["celsius", "kelvin"]},
        "place": {"type": "object", "properties": {"lat": {"type": "number", "multipleOf": 0.5, "maximum": 90}}},
    },
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Look it up.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
ASKED = [{"role": "user", "content": "How is it?"}]


def _tokenizer(template: str) -> Tokenizer:
    tokens = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b"<tool_call>", b"na", b"am", b"name", b"12"]
    special = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|tool|>"]
    if template == "ids":
        special.append("[TOOL_CALLS]")
    made = Tokenizer.from_merges(tokens, {name: len(tokens) + i for i, name in enumerate(special)})
    made.config["chat_template"] = TEMPLATES[template]
    return made


def _eos(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset({tokenizer.special_tokens["<|im_end|>"]})


def _ready(tokenizer: Tokenizer, messages: Any = ASKED, sampling: Any = None, **use: Any) -> Conversation:
    asked = tool_use(TOOLS, **use)
    params = SamplingParams(**(sampling or {}))
    return conversation(tokenizer, tokenizer.vocab_size + PADDING, _eos(tokenizer), messages, asked, params)


def _pieces(tokenizer: Tokenizer, constraint: Constraint, seed: int) -> list[Piece]:
    """The answer of a random model that likes to begin calls."""
    draw, eos = np.random.default_rng(seed), _eos(tokenizer)
    stream, pieces = TextStream(tokenizer.token_bytes, ()), list[Piece]()
    likes = [i for i, text in enumerate(tokenizer.token_bytes) if text in (b"<tool_call>", b'"', b"{", b"}")]
    likes += list(tokenizer.special_tokens.values())
    while not constraint.finished:
        allowed = constraint.allowed()
        logits = draw.normal(size=len(allowed))
        logits[likes] += 2
        token = int(np.where(allowed, logits, -np.inf).argmax())
        if token in eos:
            break
        constraint.accept(token)
        pieces.append(Piece(stream.feed(token), [token]))
        assert len(pieces) < 5000
    return [*pieces, Piece(stream.flush(), [], "stop")]


def _read(format: CallFormat, pieces: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    reader = CallReader(format)
    text, calls = gathered(part for piece in pieces for part in reader.feed(piece))
    return text, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", PLAIN),
        ("xml", PLAIN),
        (
            "tags",
            CallFormat(
                '\n<tool_call>\n{"name": "',
                '", "arguments": ',
                '}\n</tool_call>\n<tool_call>\n{"name": "',
                "}\n</tool_call>",
                True,
            ),
        ),
        ("bare", CallFormat('{"name": "', '", "parameters": ', None, "}", True)),
        (
            "special",
            CallFormat(
                '<|tool|>[{"name": "', '", "arguments": ', '}, {"name": "', "}]", True, (("<|tool|>", 266),)
            ),
        ),
    ],
)  # fmt: skip
def test_the_format_of_calls_is_read_from_the_template(template: str, expected: CallFormat) -> None:
    tokenizer = _tokenizer(template)
    assert call_format(tokenizer, _eos(tokenizer)) == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_random_answers_are_text_or_calls_that_follow_their_schema(template: str, choice: str) -> None:
    tokenizer = _tokenizer(template)
    ready = _ready(tokenizer, choice=choice)
    assert ready.constraint is not None and ready.format is not None
    called = 0
    for seed in range(25):
        pieces = _pieces(tokenizer, ready.constraint.copy(), seed)
        text, calls = _read(ready.format, pieces)
        called += len(calls)
        assert (calls and not text) or choice == "auto"
        assert ready.format.trigger not in text or not ready.format.tagged
        for name, arguments in calls:
            read = json.loads(arguments)
            jsonschema.validate(read, WEATHER if name == "weather" else {"maxProperties": 0})
            assert name in ("weather", "now") and arguments == json.dumps(read, ensure_ascii=False)
    assert called


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_answers_read_the_same_in_pieces_of_any_size(template: str, data: st.DataObject) -> None:
    tokenizer = _tokenizer(template)
    format = call_format(tokenizer, _eos(tokenizer))
    objects = st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=8), st.integers()), max_size=3)
    calls = data.draw(st.lists(st.tuples(st.sampled_from(["weather", "now"]), objects), max_size=3))
    calls = calls[:1] if format.between is None else calls
    said = data.draw(st.text(max_size=12)).rstrip()
    if not format.tagged:
        said = "" if calls else "Well. " + said
    text = said.replace(format.trigger, "")
    answer = text
    for i, (name, arguments) in enumerate(calls):
        before = (format.between or "") if i else format.opening
        answer += f"{before}{name}{format.middle}{json.dumps(arguments, ensure_ascii=False)}"
    answer += format.closing if calls else ""
    answer = answer.replace("probecall", "abcDEF123")
    special = dict(format.special)
    pieces = list[Piece]()
    while answer:
        known = next((name for name in special if answer.startswith(name)), None)
        if known:
            pieces.append(Piece("", [special[known]]))
            answer = answer[len(known) :]
            continue
        until = min((place for name in special if (place := answer.find(name)) > 0), default=len(answer))
        size = data.draw(st.integers(1, until))
        pieces.append(Piece(answer[:size], [0]))
        answer = answer[size:]
    expected = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    assert _read(format, [*pieces, Piece("", [], "stop")]) == (text, expected)


def test_one_named_tool_and_one_call_are_held() -> None:
    tokenizer = _tokenizer("tags")
    ready = _ready(tokenizer, choice={"type": "function", "function": {"name": "now"}})
    assert ready.constraint is not None and ready.format is not None
    assert _read(ready.format, _pieces(tokenizer, ready.constraint.copy(), 0)) == ("", [("now", "{}")])
    single = _ready(tokenizer, choice="required", parallel=False)
    assert single.constraint is not None
    assert all(len(_read(ready.format, _pieces(tokenizer, single.constraint.copy(), i))[1]) == 1 for i in range(20))


def test_text_beside_tools_follows_the_schema_of_the_response() -> None:
    tokenizer = _tokenizer("tags")
    ready = _ready(tokenizer, sampling={"json_schema": {"enum": ["yes", "no"]}})
    assert ready.constraint is not None and ready.format is not None
    found = [_read(ready.format, _pieces(tokenizer, ready.constraint.copy(), seed)) for seed in range(20)]
    assert {text for text, _ in found} == {"", '"yes"', '"no"'} and any(calls for _, calls in found)


CALLED: list[Any] = [
    *ASKED,
    {
        "role": "assistant",
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "noon"},
]


def test_earlier_calls_are_written_as_the_template_writes_them() -> None:
    tokenizer = _tokenizer("tags")
    text = _shown(tokenizer, _ready(tokenizer, CALLED).prompt)
    assert '<|im_start|>assistant\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nnoon<|im_end|>" in text and text.startswith('[{"type": "function"')


def test_a_template_without_tools_is_told_of_them_in_plain_words() -> None:
    tokenizer = _tokenizer("plain")
    text = _shown(tokenizer, _ready(tokenizer, CALLED).prompt)
    assert text.startswith("<|im_start|>system\nYou can call") and '"name": "weather", "description"' in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\nnoon\n</tool_response><|im_end|>" in text


def _shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    return "".join(names.get(i) or tokenizer.token_bytes[i].decode() for i in ids)


def test_a_template_without_a_system_role_has_the_tools_in_the_question() -> None:
    tokenizer = _tokenizer("plain")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.config["chat_template"] = refusing + TEMPLATES["plain"]
    text = _shown(tokenizer, _ready(tokenizer).prompt)
    assert text.startswith("<|im_start|>user\nYou can call") and "\n\nHow is it?<|im_end|>" in text


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ([{"type": "function"}], "auto", "tools[0]"),
        ([{"type": "function", "function": {"name": "a b"}}], "auto", "tools[0].function.name"),
        ([*TOOLS, TOOLS[0]], "auto", "tools[2].function.name"),
        ([{"function": {"name": "a", "parameters": {"type": "string"}}}], "auto", "tools[0].function.parameters"),
        ([{"function": {"name": "a", "description": 1}}], "auto", "tools[0].function.description"),
        (TOOLS, "sometimes", "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "other"}}, "tool_choice"),
        ([], "required", "tool_choice"),
        (TOOLS * 70, "auto", "tools"),
    ],
)
def test_wrong_tools_are_refused_by_field(tools: Any, choice: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        tool_use(tools, choice)
    assert caught.value.field == field


def test_a_schema_that_cannot_be_held_is_refused_by_the_tools_name() -> None:
    tokenizer = _tokenizer("tags")
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}
    use = tool_use([{"type": "function", "function": {"name": "odd", "parameters": parameters}}])
    with pytest.raises(UserError, match=r"properties\.a\.pattern") as caught:
        conversation(tokenizer, tokenizer.vocab_size, _eos(tokenizer), ASKED, use, SamplingParams())
    assert caught.value.field.startswith("tools.odd.parameters")


def test_tools_that_are_too_long_together_are_refused_in_short() -> None:
    tokenizer = _tokenizer("tags")
    parameters = {"type": "object", "properties": {"a": {"enum": [f"value {i}" for i in range(400)]}}}
    use = tool_use([{"function": {"name": f"f{i}", "parameters": parameters}} for i in range(9)])
    with pytest.raises(UserError, match="send fewer of them") as caught:
        conversation(tokenizer, tokenizer.vocab_size, _eos(tokenizer), ASKED, use, SamplingParams())
    assert caught.value.field == "tools" and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}, {"type": "null"}),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, None),
        ({"properties": {"a": {"properties": {"b": {}}, "$ref": "#/$defs/c"}}}, None),
        ({"properties": {"a": {}}, "$defs": {"c": {"allOf": [{"properties": {"b": {}}}]}}}, None),
    ],
)
def test_objects_are_closed_where_all_their_properties_are_named(parameters: Any, expected: Any) -> None:
    use = tool_use([{"function": {"name": "f", "parameters": parameters}}])
    assert use is not None
    held = argument_schema(use.tools[0])
    assert held.get("additionalProperties") == expected


@pytest.mark.parametrize(
    ("calls", "field"),
    [
        ("now", "messages[1].tool_calls"),
        ([{"id": "a"}], "messages[1].tool_calls[0]"),
        ([{"function": {"name": "now", "arguments": "{"}}], "messages[1].tool_calls[0].function.arguments"),
        ([{"function": {"name": "now", "arguments": "[1]"}}], "messages[1].tool_calls[0].function.arguments"),
    ],
)
def test_wrong_calls_in_messages_are_refused_by_field(calls: Any, field: str) -> None:
    messages = [*ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(UserError) as caught:
        _ready(_tokenizer("tags"), messages)
    assert caught.value.field == field
