"""The least level of what is logged: KIARA_LOG_LEVEL in the environment, info by default."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from kiara_runtime.errors import UserError

VARIABLE = "KIARA_LOG_LEVEL"
LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}


def log_level(environ: Mapping[str, str] = os.environ) -> int:
    """A level of the module `logging`; raises UserError if the variable names none."""
    name = environ.get(VARIABLE, "") or "info"
    if name.lower() not in LEVELS:
        raise UserError(VARIABLE, "is not a level", f"use one of {', '.join(LEVELS)}", value=name)
    return LEVELS[name.lower()]
