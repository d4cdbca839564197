"""What the tests of several files end_to_end share."""

from __future__ import annotations

from typing import Any

IMPATIENT = """
import sys
import kiara_runtime.server.http as home
home.RECEIVE_SECONDS, home.IDLE_SECONDS, home.CLEANUP_SECONDS = 0.5, 1, 1
from kiara_runtime.commands.main import main
main(sys.argv[1:])
"""


LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 90, "ignore_eos": True}
