"""JSON Schema's own test suite against the grammars: what is accepted is valid, or the schema was refused by name.

Usage: check_schemas.py SUITE, the folder tests/draft2020-12 of the suite. For each schema that is not refused, every
instance is spelled out and given to the grammar; what the suite calls invalid may not be accepted. And of each grammar
some texts are drawn at random, which must satisfy `jsonschema`. So must those of 500 random objects of these schemas.
Prints a row a keyword; ends with an error where one
is wrong.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
from jsonschema import Draft202012Validator, FormatChecker
from referencing.exceptions import Unresolvable

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.constraint import Constraint, constrain
from kiara_runtime.sampling.params import SamplingParams
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

BYTES = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})
MOST_TOKENS, DRAWN, COMPOSED = 400, 4, 500
INNER = re.compile("nimplemented|coerce|x-guidance|nsatisfiable|f64|lexer")  # llguidance's words, which nobody wrote
HELD_TO = "date time date-time duration email hostname ipv4 ipv6 uuid uri".split()
_CHECKER = FormatChecker(())  # of those formats; the others are annotations
_CHECKER.checkers = {
    name: check for name, check in Draft202012Validator.FORMAT_CHECKER.checkers.items() if name in HELD_TO
}


def begin(schema: Any) -> Constraint | None:
    """The grammar of a schema, token by token a byte; None where it is refused."""
    try:
        text = SamplingParams(json_schema=json.dumps(schema)).json_schema
        return constrain(BYTES, 257, frozenset({256}), json_schema=text)
    except UserError as error:
        assert str(error).startswith("json_schema") and not INNER.search(str(error)), error
        return None


def spellings(data: Any) -> set[str]:
    """What JSON may write a value as: with white space or none, characters by number, an exponent for each number."""
    compact = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    shifted = re.sub(r'(?<![\w".])(\d+)(?![\w".])', r"\g<1>e0", compact)
    return {compact, json.dumps(data, ensure_ascii=False), json.dumps(data), json.dumps(data, indent=2), shifted}


def accepts(schema: Any, text: str) -> bool:
    constraint = begin(schema)
    assert constraint is not None
    try:
        for byte in text.encode():
            constraint.accept(byte)
    except ValueError:
        return False
    return bool(constraint.allowed()[256])


def draw(schema: Any, seed: int) -> str | None:
    """A text that the grammar lets a model write; None where it does not come to an end."""
    constraint, rng, data = begin(schema), np.random.default_rng(seed), bytearray()
    assert constraint is not None
    for _ in range(MOST_TOKENS):
        allowed = np.flatnonzero(constraint.allowed())
        if 256 in allowed and (len(allowed) == 1 or rng.random() < 0.3):
            return data.decode()
        usual = [token for token in allowed if 0x20 <= token < 0x7F] or [token for token in allowed if token < 256]
        likely = [token for token in usual if chr(token) in '"}],:0123456789'] or usual
        token = int(rng.choice(likely if rng.random() < 0.6 else usual))
        data.append(token)
        constraint.accept(token)
    return None


def composed(held: list[dict[str, Any]], refused: list[Any], count: int) -> Counter[str]:
    """Random objects of the suite's schemas: what is drawn must be valid, and one with a refused part be refused.

    A part that nothing satisfies is refused alone; as an optional property it is left out instead.
    """
    found, rng = Counter[str](), random.Random(0)
    while found["schemas"] < count:
        parts = rng.sample(held, rng.randint(1, 4))
        properties = {f"p{i}": part for i, part in enumerate(parts)}
        if rng.random() < 0.3:
            properties["list"] = {"type": "array", "items": rng.choice(held), "minItems": 1, "maxItems": 3}
        if rng.random() < 0.3:
            properties["either"] = {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 3}]}
        required = [name for name in properties if rng.random() < 0.7]
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        bad = {**schema, "properties": {**properties, "bad": rng.choice(refused)}}
        for one, kind in ((schema, "schemas"), (bad, "with a refused part")):
            if begin(one) is None:
                found[f"{kind}, refused"] += 1
                continue
            found[kind] += 1
            text = draw(one, found["schemas"])
            found["drawn"] += text is not None
            found["DRAWN WRONG"] += text is not None and not valid(one, text)
    return found


def valid(schema: Any, text: str) -> bool:
    """Whether a drawn text satisfies its schema; prints it otherwise."""
    right = Draft202012Validator(schema, format_checker=_CHECKER).is_valid(json.loads(text))
    if not right:
        print(f"  drew {text[:80]!r} from {json.dumps(schema)[:200]}")
    return right


def alone(schema: Any) -> list[dict[str, Any]]:
    """A schema without its version, if it means the same inside another: without references and expressions."""
    if not isinstance(schema, dict) or re.search(r'"\$(?!schema)|pattern', json.dumps(schema)):
        return []
    return [{key: value for key, value in cast("dict[str, Any]", schema).items() if key != "$schema"}]


def main() -> None:
    """Of formats only those are tried that are held to; the others are annotations."""
    total: Counter[str] = Counter()
    held, refused = list[dict[str, Any]](), list[Any]()
    for path in sorted(Path(sys.argv[1]).rglob("*.json")):
        if path.parent.name == "format" and path.stem not in HELD_TO:
            continue
        found: Counter[str] = Counter()
        for case in json.loads(path.read_text("utf-8")):
            schema = case["schema"]
            if not isinstance(schema, dict) or begin(schema) is None:
                found["refused"] += 1
                refused += alone(schema)
                continue
            found["schemas"] += 1
            held += alone(schema)
            for test in case["tests"]:
                accepted = any(accepts(schema, text) for text in spellings(test["data"]))
                kind = ("right" if test["valid"] else "WRONG") if accepted else ("narrow" if test["valid"] else "right")
                found[kind] += 1
                if kind == "WRONG":
                    print(
                        f"  {path.stem}: {case['description']}: {test['description']}: {json.dumps(test['data'])[:80]}"
                    )
            for seed in range(DRAWN):
                text = draw(schema, seed)
                if text is not None:
                    try:
                        checker = Draft202012Validator.FORMAT_CHECKER if path.parent.name == "format" else None
                        valid = Draft202012Validator(schema, format_checker=checker).is_valid(json.loads(text))
                    except Exception as error:  # an expression of ECMA's alone, a reference that leads elsewhere
                        valid = isinstance(error, (re.error, Unresolvable))
                    found["drawn"] += 1
                    found["DRAWN WRONG"] += not valid
                    if not valid:
                        print(
                            f"  {path.stem}: {case['description']}: drew {text[:80]!r} from {json.dumps(schema)[:120]}"
                        )
        print(f"{path.stem:24}", dict(found), flush=True)
        total.update(found)
    print("all", dict(total))
    both = composed(held, refused, COMPOSED)
    print("composed", dict(both))
    sys.exit(any(counts[kind] for counts in (total, both) for kind in ("WRONG", "DRAWN WRONG")))


if __name__ == "__main__":
    main()
