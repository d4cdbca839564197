"""The error of a document that cannot be used, which leaves the other documents readable."""

from __future__ import annotations

from kiara_runtime.errors import UserError


class BadTextError(UserError):
    """A document that is not text. reason: what is wrong with it, as a data card counts it."""

    def __init__(
        self, field: object, problem: str, remedy: str = "", reason: str = "not text", **value: object
    ) -> None:
        super().__init__(field, problem, remedy, **value)
        self.reason = reason
