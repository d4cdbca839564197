"""Operating system services: locks, signals, standard streams, memory, files of bounded size, this machine.

Independent of models, tokens and bundles.
"""

from kiara_runtime.system.console import discard_stdout, json_text, replace_unencodable, tell
from kiara_runtime.system.cpu_quota import threads_within_quota
from kiara_runtime.system.files import hash_file, parse_object, read_bounded, read_bounded_json
from kiara_runtime.system.folder_lock import FolderLock, LockedError
from kiara_runtime.system.interrupts import (
    CODES,
    LINES,
    Terminated,
    answered,
    early_interrupts,
    handle_signals,
    leave,
    on_forced_exit,
)
from kiara_runtime.system.log_level import log_level
from kiara_runtime.system.machine import machine
from kiara_runtime.system.memory import give_back, resident, share_arena

__all__ = [
    "CODES",
    "LINES",
    "FolderLock",
    "LockedError",
    "Terminated",
    "answered",
    "discard_stdout",
    "early_interrupts",
    "give_back",
    "handle_signals",
    "hash_file",
    "json_text",
    "leave",
    "log_level",
    "machine",
    "on_forced_exit",
    "parse_object",
    "read_bounded",
    "read_bounded_json",
    "replace_unencodable",
    "resident",
    "share_arena",
    "tell",
    "threads_within_quota",
]
