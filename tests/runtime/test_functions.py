"""Python functions that a model calls, and the loop that runs them."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from kiara_runtime.aio import AsyncModel
from kiara_runtime.errors import UserError
from kiara_runtime.functions import run_functions
from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.tools.functions import function_definition

ASKED = [{"role": "user", "content": "x"}]


class Unit(enum.Enum):
    KELVIN = "K"
    CELSIUS = "C"


def report(
    city: str, days: int = 1, unit: Unit = Unit.KELVIN, at: list[float] | None = None, *, how: Literal["a", 2]
) -> str:
    """Say how the weather will be.

    city: its name, in English
    days: ahead
    """
    raise NotImplementedError


@pytest.fixture(scope="module")
def model(tool_bundle: Path) -> Iterator[Model]:
    with load(tool_bundle) as model:
        yield model


def test_a_definition_has_the_annotations_and_the_docstring() -> None:
    made = function_definition(report)["function"]
    assert (made["name"], made["description"].splitlines()[0]) == ("report", "Say how the weather will be.")
    parameters = made["parameters"]
    assert parameters["required"] == ["city", "how"]
    assert parameters["properties"]["city"] == {"type": "string", "description": "its name, in English"}
    whole = {"city": "Oslo", "days": 2, "unit": "K", "at": [1, 2.5], "how": 2}
    jsonschema.validate(whole, parameters)
    for name, value in (("days", "2"), ("unit", "F"), ("at", ["1"]), ("how", "b"), ("extra", 1)):
        assert not jsonschema.Draft202012Validator(parameters).is_valid({**whole, name: value})


def _bare(city) -> None: ...  # pyright: ignore


def _many(*cities: str) -> None: ...


def _odd(when: set[str]) -> None: ...


@pytest.mark.parametrize(
    ("function", "field"), [(_bare, "_bare(city)"), (_many, "_many(cities)"), (_odd, "_odd(when)")]
)
def test_what_json_cannot_carry_is_refused(function: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        function_definition(function)
    assert caught.value.field == field


def test_functions_run_with_what_the_model_asks_for(model: Model) -> None:
    seen = list[Any]()

    def add(ok: bool, kind: Literal["a", "b"]) -> dict[str, int]:
        seen.append((ok, kind))
        return {"n": 7}

    one_call = {model.tokenize("<")[0]: -100.0}  # no choice of the model begins another
    sampling: dict[str, Any] = {"seed": 1, "max_tokens": 60, "logit_bias": one_call}
    called, result, answer = run_functions(model, ASKED, [add], "required", max_rounds=1, **sampling)
    [(ok, kind)], [call] = seen, called["tool_calls"]
    assert type(ok) is bool and kind in ("a", "b")
    assert json.loads(call["function"]["arguments"]) == {"ok": ok, "kind": kind}
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": '{"n": 7}'}
    expected = model.chat([*ASKED, called, result], [add], "none", **sampling)
    assert answer == {"role": "assistant", "content": expected.text}


def test_a_call_that_is_cut_off_is_not_run(model: Model) -> None:
    def add(n: int) -> None:
        raise AssertionError

    with pytest.raises(UserError, match="in the middle of a call"):
        run_functions(model, ASKED, [add], "required", max_tokens=25, seed=1)


def test_asyncio_answers_the_same(model: Model) -> None:
    def add(ok: bool) -> None: ...

    sampling: dict[str, Any] = {"seed": 3, "max_tokens": 40}
    expected = model.chat(ASKED, [add], "required", **sampling)
    found = asyncio.run(AsyncModel(model).chat(ASKED, [add], "required", **sampling))
    assert (found.text, found.tool_calls, found.finish_reason) == (
        expected.text,
        expected.tool_calls,
        expected.finish_reason,
    )
    assert found.tool_calls[0].name == "add"
