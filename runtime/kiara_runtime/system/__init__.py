"""Operating system services: locks, signals, standard streams, memory, files of bounded size, this machine.

Independent of models, tokens and bundles.
"""

from kiara_runtime.system.console import forget_reader, json_text, show_anything, tell
from kiara_runtime.system.files import hash_file, parse_object, read_bounded, read_bounded_json
from kiara_runtime.system.folder_lock import FolderLock, LockedError
from kiara_runtime.system.interrupts import (
    CODES,
    LINES,
    Terminated,
    answered,
    early_interrupts,
    leave,
    on_sudden_end,
    orderly_end,
)
from kiara_runtime.system.machine import machine
from kiara_runtime.system.memory import give_back, share_arena

__all__ = [
    "CODES",
    "LINES",
    "FolderLock",
    "LockedError",
    "Terminated",
    "answered",
    "early_interrupts",
    "forget_reader",
    "give_back",
    "hash_file",
    "json_text",
    "leave",
    "machine",
    "on_sudden_end",
    "orderly_end",
    "parse_object",
    "read_bounded",
    "read_bounded_json",
    "share_arena",
    "show_anything",
    "tell",
]
