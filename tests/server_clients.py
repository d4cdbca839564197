"""Constants shared by the tests of the server process."""

from __future__ import annotations

from typing import Any

# Serves with short timeouts.
SHORT_TIMEOUTS = """
import sys
import kiara_runtime.server.http as home
home.RECEIVE_SECONDS, home.IDLE_SECONDS, home.CLEANUP_SECONDS = 0.5, 1, 1
from kiara_runtime.commands.main import main
main(sys.argv[1:])
"""


LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 90, "ignore_eos": True}
