"""Rewrites keywords of JSON Schema that llguidance does not read as JSON Schema 2020-12 defines them."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, cast

from kiara_runtime.sampling.grammar.ecma import rust_expression
from kiara_runtime.sampling.grammar.schema_checks import Schema, is_number, refusal, step

# llguidance and most programs read JSON numbers as doubles; beyond this not every integer is one.
EXACT = 1 << 53
TINY = 1e-15  # llguidance reads bounds without exponents and with a limited number of digits
_STEPS = (1e-9, 1e-5, 1e-2, 1)
# Limits of a step in units of its last decimal: llguidance has a state for each remainder, and counts in 32 bits.
MAX_STEP, MAX_UNITS = 4096, (1 << 32) - 1
HALF_DIGITS = 1 << 40  # below it, multiples of 1 / MAX_STEP and their quotients are exact

# Formats that llguidance checks by their standards; others are annotations, as 2020-12 has it for all.
_KNOWN_FORMATS = frozenset("duration email hostname ipv4 ipv6 uuid uri".split())
# RFC 3339 with the length of each month; without the year 0, which Python lacks, and leap seconds, which need a table.
_YEAR = r"([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAYS = r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = rf"({_YEAR}-{_DAYS}|{_LEAP}-02-29)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
MAX_HOSTNAME = 253  # RFC 1123; llguidance checks all of it but the total length


def mend_numbers(path: str, schema: Schema) -> None:
    """Make values, bounds and steps ones that a double can hold; refuse those that cannot be."""
    for key in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
        if key in schema:
            schema[key] = int(schema[key])  # 2.0 is an integer
    for key in ("const", "enum"):
        if key in schema and (wide := _wide(schema[key])) is not None:
            raise refusal(f"{path}.{key}", f"{wide} is beyond {EXACT}, where programs round", "give it as a string")
    if "multipleOf" in schema:
        _mend_step(path, schema)
    for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if key in schema:
            _mend_bound(path, schema, key)


def _wide(value: Any) -> Any:
    """A number in the value that a double may not hold exactly, or None."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if is_number(value) and abs(value) > EXACT:
            return value
        if isinstance(value, (list, dict)):
            waiting += cast("Any", value).values() if isinstance(value, dict) else cast("list[Any]", value)
    return None


def _mend_step(path: str, schema: Schema) -> None:
    given = schema["multipleOf"]
    exact = Decimal(repr(given))
    if exact != Decimal(given):
        problem = f"{given} is not exact in binary, so programs differ on its multiples"
        raise refusal(f"{path}.multipleOf", problem, "count in a smaller unit, or check it yourself")
    if exact == int(exact):
        schema["multipleOf"] = int(exact)
    else:
        schema["minimum"] = max(schema.get("minimum", -HALF_DIGITS), -HALF_DIGITS)
        schema["maximum"] = min(schema.get("maximum", HALF_DIGITS), HALF_DIGITS)


def limit_steps(found: list[tuple[str, Schema]]) -> None:
    """Refuse steps that llguidance cannot count in, alone or combined; limit digits where a bound is exclusive.

    A number very close to an exclusive bound may be read as the bound: 0.99999999999999999999 is read as 1.
    """
    steps = list[float]()
    for path, schema in found:
        if "multipleOf" in schema:
            steps.append(schema["multipleOf"])
            if _together(steps) > MAX_STEP:
                problem = f"{steps[-1]}: alone or with other steps, it needs too many states"
                raise refusal(f"{path}.multipleOf", problem, "leave it out, and check it yourself")
    for _, schema in found:
        bounds = [math.ulp(schema[key]) for key in ("exclusiveMinimum", "exclusiveMaximum") if key in schema]
        if bounds and "multipleOf" not in schema and schema.get("type") != "integer":
            schema["multipleOf"] = next(
                step
                for step in _STEPS
                if step == 1 or (step > 2 * max(bounds) and _together([*steps, step, 1]) <= MAX_UNITS)
            )


def _together(steps: list[float]) -> int:
    """The least common multiple of the steps, in units of their last decimal."""
    exact = [Decimal(repr(step)) for step in steps]
    scale = 10 ** max(0, *(-cast("int", step.as_tuple().exponent) for step in exact))
    return math.lcm(*(int(step * scale) for step in exact))


def _mend_bound(path: str, schema: Schema, key: str) -> None:
    """Replace a bound that a double cannot hold, or that needs many zeros, by the nearest usable one within it."""
    sign = 1 if key.endswith("inimum") else -1
    bound = sign * schema[key]  # as a lower bound, whichever it is
    if bound > EXACT:
        raise refusal(f"{path}.{key}", f"{schema[key]} is beyond {EXACT}, where programs round", "leave it out")
    if 0 < bound < TINY:
        bound = TINY
    elif -TINY < bound < 0:
        bound = 0
    schema[key] = sign * max(bound, -EXACT) or 0


def mend_strings(path: str, schema: Schema) -> None:
    """Translate expressions for the Rust library and some formats to expressions; drop unknown formats."""
    if "pattern" in schema:
        schema["pattern"] = _expression(f"{path}.pattern", schema["pattern"])
    if "patternProperties" in schema:
        inner = f"{path}.patternProperties"
        names = {name: _expression(inner + step(name), name, exact=True) for name in schema["patternProperties"]}
        if len(set(names.values())) < len(names):
            raise refusal(inner, "two of its expressions match the same names", "let each name match one of them")
        schema["patternProperties"] = {names[name]: value for name, value in schema["patternProperties"].items()}
    format = schema.get("format")
    if format == "hostname":
        schema["maxLength"] = min(schema.get("maxLength", MAX_HOSTNAME), MAX_HOSTNAME)
    if format is not None and format not in _KNOWN_FORMATS:
        del schema["format"]
        if format in _FORMATS:
            _also(schema, "pattern", _FORMATS[format])


def _expression(path: str, pattern: str, exact: bool = False) -> str:
    try:
        return rust_expression(pattern, exact)
    except ValueError as error:
        raise refusal(path, f"{pattern!r:.60}: {error}", "correct it, or leave it out and check it yourself") from None


def mend_options(schema: Schema) -> None:
    """Replace `oneOf` with `anyOf` if its options are distinct values, which exclude each other."""
    options = schema.get("oneOf", [])
    values = [value for option in options for value in _values(option)]
    if options and all(map(_values, options)) and len(set(map(_canonical, values))) == len(values):
        del schema["oneOf"]
        _also(schema, "anyOf", options)


def _values(option: Any) -> list[Any]:
    given = cast("Schema", option) if isinstance(option, dict) else {}
    return [given["const"]] if "const" in given else given.get("enum", [])


def _canonical(value: Any) -> str:
    """A string that is the same for equal values of JSON Schema, in which 1.0 equals 1."""

    def number(text: str) -> float:
        value = float(text)
        return int(value) if value == int(value) else value

    return json.dumps(json.loads(json.dumps(value), parse_float=number), sort_keys=True)


def _also(schema: Schema, key: str, value: Any) -> None:
    """Add a keyword; if the schema has it already, both apply."""
    if key in schema:
        schema["allOf"] = [*schema.get("allOf", []), {key: value}]
    else:
        schema[key] = value
