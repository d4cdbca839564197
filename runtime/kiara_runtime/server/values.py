"""Kinds of values in the requests of all formats, and the limits on them. Types are strict: "1" is not a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, cast

from annotated_types import GroupedMetadata
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    StringConstraints,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

MAX_N, MAX_PROMPTS, MAX_MESSAGES, MAX_BIASES, MAX_STOPS, MAX_TOP = 16, 256, 1024, 1024, 16, 20
MAX_TOOLS, MAX_CALLS = 128, 128
MAX_INPUTS = 2048  # texts to embed; OpenAI's limit
LARGEST = (1 << 31) - 1


def _whole(value: object) -> object:
    """Accept 1.0 as an integer, because JSON has only one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the bounds; otherwise pydantic writes them into the schema under wrong names
Finite = Field(allow_inf_nan=False)
TokenId = Annotated[int, Field(ge=0, le=LARGEST, json_schema_extra={"x-token": True}), WHOLE]
TOKEN_NAME = r"^(0|[1-9][0-9]{0,8})$"  # a token id as an object key
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, StringConstraints(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=LARGEST), WHOLE]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def _form(value: object) -> str:
    """The form of a value, from its first element; otherwise pydantic would report the errors of every form.

    In brackets, because they appear in the paths of errors, from which `guard` removes them.
    """
    if not isinstance(value, list):
        return "[one]"
    first: object = next(iter(cast("list[object]", value)), "")
    return "[many]" if isinstance(first, (str, dict, BaseModel)) else "[lists]" if isinstance(first, list) else "[ids]"


One, Many, Ids, Lists = Tag("[one]"), Tag("[many]"), Tag("[ids]"), Tag("[lists]")
ByForm = Discriminator(_form)
Stops = Annotated[list[Text], Field(max_length=MAX_STOPS, fail_fast=True), Many]
Stop = Annotated[Annotated[Text, One] | Stops, ByForm]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Many]
IdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Lists]
Inputs = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Many]
InputIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Lists]
Dimensions = Annotated[int, Field(ge=1, le=LARGEST), WHOLE]
Prompt = Annotated[Annotated[str, One] | Texts | Annotated[TokenIds, Ids] | IdLists, ByForm]


class Nothing(GroupedMetadata):
    """A field that is not supported: only null, or a value that requests the default behaviour."""

    def __init__(self, *values: object) -> None:
        self._known = [None, *values]

    def __iter__(self) -> Iterator[object]:
        yield PlainValidator(self._check)
        yield WithJsonSchema({"enum": self._known})

    def _check(self, given: object) -> None:
        if not any(given == known and isinstance(given, bool) == isinstance(known, bool) for known in self._known):
            raise PydanticCustomError("unsupported", "is not supported by this server")


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"


def word_or_object(value: object) -> str:
    """The form of a value that is a word, such as auto, or an object."""
    return "[word]" if isinstance(value, str) else "[object]"


Word, Object, ByWord = Tag("[word]"), Tag("[object]"), Discriminator(word_or_object)


def listed(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The prompts of a field that may have one or several, as texts or ids."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [[part for part in prompt if isinstance(part, int)]]
    return [part for part in prompt if not isinstance(part, int)]
