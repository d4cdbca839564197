"""Errors that a user can fix, as field, problem and remedy. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

SHOWN = 60  # characters of a value
_ABSENT = object()


class UserError(ValueError):
    """Input that cannot be used. The message is built only here; code reads the parts.

    field: where the value was given: an option, a file, a setting such as `training.max_steps`, `messages[0].role`.
    problem: what is wrong with it. remedy: what to do instead. value: the value given, if showing it helps.
    """

    def __init__(self, field: object, problem: str, remedy: str = "", *, value: object = _ABSENT) -> None:
        self.field, self.problem, self.remedy, self.value = str(field), problem, remedy, value
        super().__init__(field, problem, remedy)

    def __str__(self) -> str:
        shown = "" if self.value is _ABSENT else " ".join(repr(self.value).split())[:SHOWN] + " "
        return f"{self.field}: {shown}{self.problem}" + (f"; {self.remedy}" if self.remedy else "")

    @property
    def name(self) -> str:
        """The first name in the field: `messages` of `messages[0].role`."""
        return self.field.partition(".")[0].partition("[")[0]

    def renamed(self, field: object) -> Self:
        """A copy for another field."""
        return type(self)(field, self.problem, self.remedy, value=self.value)

    def followed_by(self, others: Iterable[UserError]) -> Self:
        """A copy that ends with the messages of `others`."""
        remedy = "; ".join(filter(None, [self.remedy, *map(str, others)]))
        return type(self)(self.field, self.problem, remedy, value=self.value)

    def inside(self, place: object, joint: str = ": ") -> Self:
        """A copy whose field is prefixed with the file, folder or command that it is in."""
        return self.renamed(f"{place}{joint}{self.field}")


class BusyError(UserError):
    """Too many requests are queued; try again later."""


class ClosedError(UserError):
    """The model has been closed."""


class ContextError(UserError):
    """The prompt leaves no room in the model's context."""
