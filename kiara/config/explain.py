"""Turn pydantic's validation errors into UserErrors: the key's path, the problem, and a remedy."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from kiara.config.sections import Config
from kiara_runtime.errors import UserError


def explained(error: ValidationError) -> UserError:
    """One UserError for all errors; its field and problem are those of the first."""
    first, *rest = (_explain_one(detail) for detail in error.errors())
    return first.followed_by(rest)


def own_error(detail: Any) -> UserError | None:
    """The UserError that one of our own validators raised, from pydantic's error details; else None."""
    raised = detail.get("ctx", {}).get("error")
    return raised if isinstance(raised, UserError) else None


def _explain_one(detail: Any) -> UserError:
    if (raised := own_error(detail)) is not None:
        return raised
    where = [str(part) for part in detail["loc"]]
    path, message = ".".join(where), str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        return UserError(path, "there is no such key", nearest(where))
    expected = message[0].lower() + message[1:]
    if detail["type"] in ("model_type", "dict_type"):
        expected = f"give a mapping of keys; `kiara config` lists those of {path}"
    return UserError(path, f"{detail['input']!r} cannot be used", expected)


def nearest(where: list[str]) -> str:
    """Remedy for an unknown setting: the nearest known name, or where to find all names."""
    sections = list(Config.model_fields)
    if len(where) == 1:
        owner = [f"{s}.{where[0]}" for s in sections if where[0] in _section_fields(s)]
        close = owner or difflib.get_close_matches(where[0], sections, n=1, cutoff=0.5)
        return f"did you mean {close[0]}?" if close else f"the sections are {', '.join(sections)}"
    close = difflib.get_close_matches(where[1], _section_fields(where[0]), n=1, cutoff=0.5)
    return f"did you mean {where[0]}.{close[0]}?" if close else f"`kiara config` lists all of {where[0]}"


def _section_fields(section: str) -> list[str]:
    return list(type(getattr(Config(), section)).model_fields)
