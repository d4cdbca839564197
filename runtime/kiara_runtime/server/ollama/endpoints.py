"""What each endpoint of Ollama's API does with a model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kiara_runtime.sampling import SamplingParams
from kiara_runtime.server.jobs import Patience, Prompt, Work
from kiara_runtime.server.models import LATEST, Entry
from kiara_runtime.server.ollama import objects as answers
from kiara_runtime.server.ollama import requests as api
from kiara_runtime.server.ollama.chat import LineVoice, messages_of, sampling_of
from kiara_runtime.server.openai.responses import Model as Card
from kiara_runtime.server.served import ServedModel, named, renamed
from kiara_runtime.server.voice import Voice
from kiara_runtime.tokens import template_of
from kiara_runtime.tools import tool_use

_PLACES = {"json_schema": "format", "response_format": "format"}


def chat(served: ServedModel, asked: api.OllamaChatRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """Answer a conversation; an empty one loads the model only."""
    messages = messages_of(asked) or [{"role": "user", "content": ""}]
    with renamed(_PLACES), named("messages"):
        params = _params(served, asked, not asked.messages)
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        found = served.model.conversation(messages, tool_use(tools), params)
        work = served.answer(found, params, 1, patience)
    return work, LineVoice(asked.model, work, found.format, chat=True, loads=not asked.messages)


def generate(served: ServedModel, asked: api.GenerateRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """Answer a prompt through the chat template, or continue it if it is raw or there is no template."""
    with renamed(_PLACES), named("prompt"):
        params = _params(served, asked, not asked.prompt)
        if asked.suffix:
            ids, params = served.infill(asked.prompt, asked.suffix, params)
            work = served.work(ids, 1, params, patience)
        elif asked.raw or not served.has_chat:
            ids = Prompt(served.model.prompt_ids(asked.prompt), heal=True)
            work = served.work([ids], 1, params, patience)
        else:
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            messages = [*system, {"role": "user", "content": asked.prompt}]
            work = served.answer(served.model.conversation(messages, None, params), params, 1, patience)
    return work, LineVoice(asked.model, work, None, chat=False, loads=not asked.prompt)


def _params(served: ServedModel, asked: api.OllamaRequest, loads: bool) -> SamplingParams:
    sampling: dict[str, Any] = sampling_of(asked, served.model.context_length)
    if loads:
        sampling["max_tokens"] = 0
    return SamplingParams(**sampling)


def tags(entries: Sequence[Entry]) -> answers.Tags:
    """What to know about models."""
    return answers.Tags(models=[_tag(entry) for entry in entries])


def show(entry: Entry, served: ServedModel) -> answers.Shown:
    """What there is to know about a model."""
    card = entry.card()
    able = {"tools": served.has_chat, "embedding": served.model.runner.hidden_size is not None}
    return answers.Shown(
        modelfile="",
        parameters="",
        template=template_of(served.model.tokenizer.config) or "",
        details=_details(card),
        model_info={
            "general.architecture": "kiara",
            "general.parameter_count": card.parameters,
            "kiara.context_length": card.context_length,
            "kiara.vocab_size": card.vocab_size,
        },
        capabilities=["completion", *(name for name, there in able.items() if there)],
    )


def _tag(entry: Entry) -> answers.Tag:
    card, files = entry.card(), entry.bundle.manifest["files"].values()
    at = datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")
    name = card.id + LATEST
    return answers.Tag(
        name=name,
        model=name,
        modified_at=at,
        size=sum(int(file["size"]) for file in files),
        digest=str(entry.bundle.manifest["sha256"]),
        details=_details(card),
    )


def _details(card: Card) -> answers.Details:
    size = f"{card.parameters / 1e9:.1f}B" if card.parameters >= 1e9 else f"{card.parameters / 1e6:.1f}M"
    return answers.Details(family="kiara", families=["kiara"], parameter_size=size, quantization_level=card.variant)
