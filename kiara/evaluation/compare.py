"""Several models side by side: their answers to the same prompts, and how likely each finds a reference answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiara.data import conversation_of, read_records
from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.tokens import Message, can_chat

MAX_PROMPTS = 1000


@dataclass(frozen=True)
class Prompt:
    """messages: a conversation that ends with a question. reference: a good answer, if known."""

    messages: Sequence[Message]
    reference: str | None = None

    @property
    def text(self) -> str:
        """The last question."""
        return str(self.messages[-1].get("content") or "")


@dataclass(frozen=True)
class Answer:
    """reference_loss: mean nats per token of the reference answer; reference_bits_per_byte: the same per UTF-8 byte."""

    text: str
    tokens: int
    finish_reason: str
    reference_loss: float | None = None
    reference_bits_per_byte: float | None = None


@dataclass(frozen=True)
class Comparison:
    """answers: one for each prompt, by model."""

    prompts: list[Prompt]
    answers: dict[str, list[Answer]]

    def mean(self, model: str, figure: str) -> float | None:
        """Mean of a figure over the prompts with a reference, each counting the same; None if there is none."""
        found = [value for answer in self.answers[model] if (value := getattr(answer, figure)) is not None]
        return sum(found) / len(found) if found else None

    def json(self) -> dict[str, Any]:
        figures = ("reference_loss", "reference_bits_per_byte")
        return {
            "models": {name: {figure: self.mean(name, figure) for figure in figures} for name in self.answers},
            "prompts": [
                {
                    "messages": list(prompt.messages),
                    "reference": prompt.reference,
                    "answers": {name: asdict(answers[i]) for name, answers in self.answers.items()},
                }
                for i, prompt in enumerate(self.prompts)
            ],
        }


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a text file, one a line, or of JSON lines.

    A record has `messages` or `prompt`, and perhaps `completion`; an answer that ends its messages is the reference.
    """
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        found = [Prompt([{"role": "user", "content": line}]) for line in lines if line.strip()]
    else:
        found = [_prompt(name, record) for name, record in read_records(path)]
    if not found or len(found) > MAX_PROMPTS:
        raise UserError("--prompts", f"holds {len(found):,} prompts", f"give 1 to {MAX_PROMPTS:,}", value=str(path))
    return found


def _prompt(name: str, record: Mapping[str, Any]) -> Prompt:
    messages = conversation_of(name, {"completion": [], **record} if "prompt" in record else record)
    if messages[-1]["role"] != "assistant":
        return Prompt(messages)
    if len(messages) < 2:
        raise UserError(name, "asks nothing", "add a question")
    return Prompt(messages[:-1], str(messages[-1].get("content") or ""))


def compare(
    models: Mapping[str, Model],
    prompts: Sequence[Prompt],
    max_tokens: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Comparison:
    """Greedy answers of each model, as a chat if all of them have a chat template, else as continuations of the text.

    advance: receives 1 after each answer.
    """
    chat = all(can_chat(model.tokenizer) for model in models.values())
    answers: dict[str, list[Answer]] = {name: [] for name in models}
    for prompt in prompts:
        for name, model in models.items():
            answers[name].append(_answer(model, prompt, chat, max_tokens))
            advance(1)
    return Comparison(list(prompts), answers)


def _answer(model: Model, prompt: Prompt, chat: bool, max_tokens: int) -> Answer:
    given = model.chat_prompt(prompt.messages) if chat else prompt.text
    found = model.generate(given, max_tokens=max_tokens, temperature=0.0)
    answer = Answer(found.text, len(found.tokens), found.finish_reason)
    if not prompt.reference:
        return answer
    score, size = model.score(given, prompt.reference), len(prompt.reference.encode())
    per_token, per_byte = -score.logprob / max(1, len(score.tokens)), -score.logprob / math.log(2) / size
    return Answer(found.text, len(found.tokens), found.finish_reason, per_token, per_byte)
