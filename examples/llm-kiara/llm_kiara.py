"""Kiara bundles as models of the command-line tool `llm`: nothing leaves the machine.

    pip install ./runtime ./examples/llm-kiara
    export KIARA_BUNDLES=bundles/demo            # several with the system's path separator between them
    llm -m kiara/demo 'def main' -o max_tokens 40

A bundle with a chat template is asked as an assistant, any other one continues the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import llm
from pydantic import Field

import kiara_runtime


@llm.hookimpl
def register_models(register: Any) -> None:
    for path in filter(None, os.environ.get("KIARA_BUNDLES", "").split(os.pathsep)):
        register(KiaraModel(Path(path)))


class KiaraModel(llm.Model):
    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        max_tokens: int = Field(default=128, description="Tokens to generate at most")
        temperature: float = Field(default=0.8, description="0 always takes the likeliest token")
        top_p: float = Field(default=1.0, description="Keep the likeliest tokens that together reach this probability")
        seed: int | None = Field(default=None, description="The same seed gives the same text")

    def __init__(self, path: Path) -> None:
        self.model_id, self._path = f"kiara/{path.name}", path

    @cached_property
    def _model(self) -> kiara_runtime.Model:
        return kiara_runtime.load(self._path)

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        options = {name: value for name, value in prompt.options if value is not None}
        pieces = self._model.stream(self._asked(prompt, conversation), json_schema=prompt.schema, **options)
        count = 0
        for piece in pieces:
            count += len(piece.tokens)
            yield piece.text
        response.set_usage(output=count)

    def _asked(self, prompt: Any, conversation: Any) -> str | list[int]:
        if "chat_template" not in self._model.tokenizer.config:
            return prompt.prompt
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for earlier in conversation.responses if conversation else ():
            messages.append({"role": "user", "content": earlier.prompt.prompt})
            messages.append({"role": "assistant", "content": earlier.text_or_raise()})
        return self._model.chat_prompt([*messages, {"role": "user", "content": prompt.prompt}])
