"""A conversation with a model: its messages and settings. The terminal around it is in `chat`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kiara_runtime.errors import ContextError, UserError
from kiara_runtime.sampling import sampling_params
from kiara_runtime.system import json_text, read_bounded_json
from kiara_runtime.tokens import read_messages

if TYPE_CHECKING:
    from kiara_runtime.model import Model
    from kiara_runtime.stream import Stream

MAX_CHAT_BYTES = 16 << 20
SYSTEM, USER, ANSWER = "system", "user", "assistant"
WhenFull = Literal["stop", "drop"]


class Conversation:
    """messages: as for `Model.chat`. sampling: keywords of `Sampling`. when_full: at the end of the context, refuse
    to go on, or drop the oldest turns.
    """

    def __init__(self, model: Model, sampling: dict[str, Any], system: str | None, when_full: WhenFull) -> None:
        self._model, self.sampling, self._when_full = model, sampling, when_full
        self.messages: list[dict[str, Any]] = []
        self.dropped = 0  # messages left out for the last answer, the oldest ones
        self._files = set[Path]()  # saved or loaded, so they may be overwritten
        if system is not None:
            self.set_system(system)

    def reset(self) -> None:
        """Forget all messages but the system message."""
        self.messages = [message for message in self.messages if message["role"] == SYSTEM]

    def set_system(self, text: str) -> None:
        """Set the system message; an empty text removes it."""
        rest = [message for message in self.messages if message["role"] != SYSTEM]
        self.messages = [*([{"role": SYSTEM, "content": text}] if text else []), *rest]

    def ask(self, text: str) -> Stream:
        """Add a question and begin to answer it. If that fails, the question is taken back."""
        self.messages.append({"role": USER, "content": text})
        try:
            return self._answer()
        except BaseException:
            self.messages.pop()
            raise

    def retry(self) -> Stream:
        """Answer the last question again."""
        if not any(message["role"] == USER for message in self.messages):
            raise UserError("/retry", "nothing was asked yet", "ask something")
        answer = self.messages.pop() if self.messages[-1]["role"] == ANSWER else None
        try:
            return self._answer()
        except BaseException:
            self.messages += [answer] if answer else []
            raise

    def answered(self, text: str) -> None:
        """Add the answer, or as much of it as there is."""
        self.messages.append({"role": ANSWER, "content": text})

    def set(self, assignment: str) -> None:
        """Change a sampling setting, such as temperature=0.5."""
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError("/set", "has no =", "write NAME=VALUE, such as temperature=0.5", value=assignment)
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        changed = {**self.sampling, name: value}
        sampling_params(changed)  # refuses bad values
        self.sampling = changed

    def save(self, name: str) -> Path:
        """Write messages and settings as JSON; an existing file is overwritten only if it was saved or loaded here."""
        path = _named("/save", name)
        if path.exists() and path.resolve() not in self._files:
            raise UserError(path, "exists", "name another file")
        try:
            path.write_text(json_text({"messages": self.messages, "sampling": self.sampling}) + "\n", "utf-8")
        except OSError as error:
            raise UserError(path, f"cannot be written ({error.strerror})", "name another file") from None
        self._files.add(path.resolve())
        return path

    def load(self, name: str) -> Path:
        """Read what `save` wrote."""
        path = _named("/load", name)
        values = read_bounded_json(path, MAX_CHAT_BYTES)
        try:
            messages = read_messages(values.get("messages"))
            sampling: dict[str, Any] = dict(values.get("sampling") or {})
            sampling_params(sampling)
        except UserError as error:
            raise error.inside(path) from None
        self.messages, self.sampling = messages, sampling
        self._files.add(path.resolve())
        return path

    def _answer(self) -> Stream:
        """Begin the answer to the messages, without the oldest ones if they do not fit and should be dropped."""
        params = sampling_params(self.sampling)
        room = min(params.max_tokens, self._model.context_length // 4)
        for kept in self._shorter():
            self.dropped = len(self.messages) - len(kept)
            ids = self._model.chat_prompt(kept)
            if len(ids) + (room if self._when_full == "drop" else 0) < self._model.context_length:
                return self._model.start(self._model.prompt_ids(ids), params)
            if self._when_full == "stop":
                break
        raise ContextError(
            "conversation",
            f"does not fit into the model's context of {self._model.context_length} tokens",
            "/reset it, ask a shorter question, or start with --when-full drop",
        )

    def _shorter(self) -> Iterator[list[dict[str, Any]]]:
        """The messages, then without the oldest turn, and so on; the system message and the last question stay."""
        first = [message for message in self.messages if message["role"] == SYSTEM]
        rest = self.messages[len(first) :]
        yield self.messages
        for begin in range(1, len(rest)):
            if rest[begin]["role"] == USER:
                yield [*first, *rest[begin:]]


def _named(command: str, name: str) -> Path:
    if not name:
        raise UserError(command, "names no file", f"write {command} FILE")
    return Path(name).expanduser()
