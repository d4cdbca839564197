"""Conversations of earlier responses, in memory and within a bound: `previous_response_id` continues them."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.responses.objects import ResponseObject

MAX_RESPONSES, MAX_CHARACTERS = 1024, 1 << 24


@dataclass(frozen=True)
class Stored:
    """messages: of the whole conversation, in the form of chat templates, the answer included."""

    response: ResponseObject
    messages: list[dict[str, Any]]
    size: int


class Store:
    """The last responses; the oldest are dropped. Thread-safe."""

    def __init__(self, most: int = MAX_RESPONSES, characters: int = MAX_CHARACTERS) -> None:
        self._most, self._characters = most, characters
        self._held = OrderedDict[str, Stored]()
        self._lock = threading.Lock()

    def add(self, response: ResponseObject, messages: list[dict[str, Any]]) -> None:
        size = len(json.dumps(messages)) + len(response.model_dump_json())
        with self._lock:
            self._held[response.id] = Stored(response, messages, size)
            while len(self._held) > self._most or sum(one.size for one in self._held.values()) > self._characters:
                self._held.popitem(last=False)

    def get(self, id: str, param: str | None = None) -> Stored:
        """Raises ApiError if there is no such response."""
        with self._lock:
            found = self._held.get(id)
        if found is None:
            raise _missing(id, param)
        return found

    def delete(self, id: str) -> None:
        """Raises ApiError if there is no such response."""
        with self._lock:
            if self._held.pop(id, None) is None:
                raise _missing(id, None)


def _missing(id: str, param: str | None) -> ApiError:
    said = f"{param or 'response'}: {id:.80} is not stored (any more); send the whole conversation"
    return ApiError(404, said, param, "previous_response_not_found" if param else "response_not_found")
