"""What each endpoint of Ollama's API does, over the server's `Service`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kiara_runtime.sampling import SamplingParams
from kiara_runtime.server.jobs import Patience, Prompt, Work
from kiara_runtime.server.ollama import objects as answers
from kiara_runtime.server.ollama import requests as api
from kiara_runtime.server.ollama.chat import LineVoice, messages_of, sampling_of
from kiara_runtime.server.service import Service, named, renamed
from kiara_runtime.server.voice import Voice
from kiara_runtime.tokens import template_of
from kiara_runtime.tools import tool_use

LATEST = ":latest"
_PLACES = {"json_schema": "format", "response_format": "format"}


def chat(service: Service, asked: api.OllamaChatRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """Answer a conversation; an empty one loads the model only."""
    service.check_model(asked.model.removesuffix(LATEST))
    messages = messages_of(asked) or [{"role": "user", "content": ""}]
    with renamed(_PLACES), named("messages"):
        params = _params(service, asked, not asked.messages)
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        found = service.model.conversation(messages, tool_use(tools), params)
        work = service.answer(found, params, 1, patience)
    return work, LineVoice(asked.model, work, found.format, chat=True, loads=not asked.messages)


def generate(service: Service, asked: api.GenerateRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """Answer a prompt through the chat template, or continue it if it is raw or there is no template."""
    service.check_model(asked.model.removesuffix(LATEST))
    with renamed(_PLACES), named("prompt"):
        params = _params(service, asked, not asked.prompt)
        if asked.raw or not service.has_chat:
            ids = Prompt(service.model.prompt_ids(asked.prompt), heal=True)
            work = service.work([ids], 1, params, patience)
        else:
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            messages = [*system, {"role": "user", "content": asked.prompt}]
            work = service.answer(service.model.conversation(messages, None, params), params, 1, patience)
    return work, LineVoice(asked.model, work, None, chat=False, loads=not asked.prompt)


def _params(service: Service, asked: api.OllamaRequest, loads: bool) -> SamplingParams:
    sampling: dict[str, Any] = sampling_of(asked, service.model.context_length)
    if loads:
        sampling["max_tokens"] = 0
    return SamplingParams(**sampling)


def tags(service: Service) -> answers.Tags:
    """The models that there are, which is one."""
    card, digest = service.card(), str(service.manifest["sha256"])
    at = datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")
    size = sum(int(file["size"]) for file in service.manifest["files"].values())
    name = card.id + LATEST
    return answers.Tags(
        models=[answers.Tag(name=name, model=name, modified_at=at, size=size, digest=digest, details=_details(service))]
    )


def show(service: Service, asked: api.ShowRequest) -> answers.Shown:
    """What there is to know about the model."""
    service.check_model(asked.model.removesuffix(LATEST))
    card = service.card()
    return answers.Shown(
        modelfile="",
        parameters="",
        template=template_of(service.model.tokenizer.config) or "",
        details=_details(service),
        model_info={
            "general.architecture": "kiara",
            "general.parameter_count": card.parameters,
            "kiara.context_length": card.context_length,
            "kiara.vocab_size": card.vocab_size,
        },
        capabilities=["completion", *(["tools"] if service.has_chat else [])],
    )


def _details(service: Service) -> answers.Details:
    card = service.card()
    size = f"{card.parameters / 1e9:.1f}B" if card.parameters >= 1e9 else f"{card.parameters / 1e6:.1f}M"
    return answers.Details(family="kiara", families=["kiara"], parameter_size=size, quantization_level=card.variant)
