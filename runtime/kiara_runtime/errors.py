"""What a user can mend, in parts. Everything else that goes wrong is a defect and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

SHOWN = 60  # characters of a value
_ABSENT = object()


class UserError(ValueError):
    """Input that cannot be used. The sentence is made here and nowhere else; code reads the parts.

    field: where it was given: an option, a file, a setting such as `training.max_steps`, `messages[0].role`.
    problem: what is wrong with it. remedy: what to do instead. value: what was given, where that tells more.
    """

    def __init__(self, field: object, problem: str, remedy: str = "", *, value: object = _ABSENT) -> None:
        self.field, self.problem, self.remedy, self.value = str(field), problem, remedy, value
        super().__init__(field, problem, remedy)

    def __str__(self) -> str:
        shown = "" if self.value is _ABSENT else " ".join(repr(self.value).split())[:SHOWN] + " "
        return f"{self.field}: {shown}{self.problem}" + (f"; {self.remedy}" if self.remedy else "")

    @property
    def name(self) -> str:
        """The name at the front of the field, `messages` of `messages[0].role`."""
        return self.field.partition(".")[0].partition("[")[0]

    def renamed(self, field: object) -> Self:
        """The same under another name."""
        return type(self)(field, self.problem, self.remedy, value=self.value)

    def followed_by(self, others: Iterable[UserError]) -> Self:
        """The same, with the sentences of others behind its own."""
        remedy = "; ".join(filter(None, [self.remedy, *map(str, others)]))
        return type(self)(self.field, self.problem, remedy, value=self.value)

    def inside(self, place: object, joint: str = ": ") -> Self:
        """The same, with the file, folder or command in which the field is."""
        return self.renamed(f"{place}{joint}{self.field}")


class BusyError(UserError):
    """Too many requests wait; try again later."""


class ClosedError(UserError):
    """The model has been closed."""


class ContextError(UserError):
    """A prompt leaves no room in the model's context."""
