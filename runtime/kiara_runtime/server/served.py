"""A loaded model, and what the endpoints ask of it: requests become jobs here."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from kiara_runtime.embeddings import AT_ONCE, check_embedding
from kiara_runtime.engine import Pooling
from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.sampling import Constraint, SamplingParams
from kiara_runtime.server.anthropic.messages import MessagesVoice, conversation_of, sampling_of, tools_of
from kiara_runtime.server.anthropic.requests import CountRequest, MessagesRequest
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Patience, Prompt, Work
from kiara_runtime.server.openai import requests as api
from kiara_runtime.server.openai.choices import ChatVoice, CompletionVoice, TokenTexts
from kiara_runtime.server.openai.messages import ChatMessage
from kiara_runtime.server.records import Metrics
from kiara_runtime.server.responses import conversation as responses
from kiara_runtime.server.responses.objects import ResponseObject
from kiara_runtime.server.responses.requests import ResponsesRequest
from kiara_runtime.server.responses.store import Store
from kiara_runtime.server.responses.voice import ResponsesVoice
from kiara_runtime.server.values import listed
from kiara_runtime.server.voice import Voice
from kiara_runtime.stream import Stream
from kiara_runtime.tokens import can_chat
from kiara_runtime.tools import Conversation, ToolUse, tool_use

CHOICES = 256  # per request: n times the number of prompts
TOLD = 1 << 20  # log-probabilities of a request's prompts, including top alternatives
# Names of the runtime and of chat completions, as the Responses API has them.
_OF_RESPONSES = {"json_schema": "text.format.schema", "response_format": "text", "messages": "input"}
SEEDS = 1 << 63  # OpenAI's go down to -2^63, those of SamplingParams to 0
DEFAULT_TOKENS = 16  # of a completion, OpenAI's default
# Request fields that are sampling parameters of the same name.
_SAMPLING = (
    "max_tokens temperature top_p seed stop presence_penalty frequency_penalty logit_bias top_k min_p typical_p "
    "repetition_penalty banned_tokens stop_token_ids ignore_eos speculate token_healing"
).split()


class ServedModel:
    """slots: sequences that run at once. fingerprint: of the bundle. store: of responses that may be continued."""

    def __init__(self, name: str, fingerprint: str, model: Model, slots: int, metrics: Metrics, store: Store) -> None:
        self.name, self.model, self.texts = name, model, TokenTexts(model.tokenizer)
        self.has_chat = can_chat(model.tokenizer)
        self._fingerprint, self._slots, self._metrics, self._store = fingerprint, slots, metrics, store

    def complete(self, asked: api.CompletionRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
        prompts = listed(asked.prompt)
        echo, logprobs = bool(asked.echo), asked.logprobs is not None
        sampling: dict[str, Any] = {
            **_sampling(asked, DEFAULT_TOKENS),
            "logprobs": asked.logprobs,
            "prompt_logprobs": echo and logprobs,
        }
        params = SamplingParams(**sampling)
        with named("prompt"):
            if asked.suffix:
                ids, params = self.infill(asked.prompt, asked.suffix, params)
            else:
                ids = [Prompt(self.model.prompt_ids(prompt), isinstance(prompt, str)) for prompt in prompts]
        work = self.work(ids, asked.n, params, patience)
        echoed = [p if isinstance(p, str) else self.model.detokenize(p) for p in prompts] if echo else None
        return work, CompletionVoice(
            self._head(f"cmpl-{id}"), work, _usage(asked), self.texts, echoed, asked.n or 1, logprobs
        )

    def infill(
        self, prompt: str | list[str] | list[int] | list[list[int]], suffix: str, params: SamplingParams
    ) -> tuple[list[Prompt], SamplingParams]:
        """The prompt of a middle, and parameters that end there."""
        if not isinstance(prompt, str):
            raise ApiError(400, "suffix: needs a prompt that is one text; send several requests", "suffix")
        ids, params = self.model.infill(prompt, suffix, params)
        return [Prompt(ids)], params

    def chat(self, asked: api.ChatRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs: true", "top_logprobs")
        given = [n for n in (asked.max_tokens, asked.max_completion_tokens) if n is not None]
        sampling = _sampling(asked, self.model.context_length)
        sampling |= {"max_tokens": min(given)} if given else {}  # two names of the same limit
        sampling["logprobs"] = (asked.top_logprobs or 0) if asked.logprobs else None
        params, messages = SamplingParams(**sampling), [_message(message) for message in asked.messages]
        with named("messages"):
            chat = self.model.conversation(messages, _tools(asked), params, bool(asked.continue_final_message))
        work = self.answer(chat, params, asked.n, patience)
        head, n = self._head(f"chatcmpl-{id}"), asked.n or 1
        return work, ChatVoice(head, work, _usage(asked), self.texts, n, bool(asked.logprobs), chat.format)

    def messages(self, asked: MessagesRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
        """An answer in Anthropic's format."""
        params = SamplingParams(**sampling_of(asked))
        chat = self._prompt_of(asked, params)
        work = self.answer(chat, params, 1, patience)
        return work, MessagesVoice(id, self.name, work, chat.format)

    def respond(self, asked: ResponsesRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
        """An answer in the format of OpenAI's Responses API."""
        previous = asked.previous_response_id
        before = [] if previous is None else self._store.get(previous, "previous_response_id").messages
        messages = [*before, *responses.messages_of(asked)]
        with renamed(_OF_RESPONSES), named("input"):
            params = SamplingParams(**responses.sampling_of(asked, self.model.context_length))
            whole = responses.with_instructions(asked.instructions, messages)
            chat = self.model.conversation(whole, responses.tools_of(asked), params)
            work = self.answer(chat, params, 1, patience)

        def keep(response: ResponseObject, answer: dict[str, Any]) -> None:
            self._store.add(response, [*messages, answer])

        return work, ResponsesVoice(asked, id, self.name, work, chat.format, keep)

    def count(self, asked: CountRequest) -> int:
        """Tokens of the prompt of a message."""
        return len(self._prompt_of(asked, SamplingParams()).prompt)

    def _prompt_of(self, asked: CountRequest, params: SamplingParams) -> Conversation:
        messages = conversation_of(asked)
        with named("messages"):
            return self.model.conversation(messages, tools_of(asked), params, messages[-1]["role"] == "assistant")

    def answer(self, chat: Conversation, params: SamplingParams, n: int | None, patience: Patience) -> Work:
        """The work of answering a conversation."""
        ids = self.model.prompt_ids(chat.prompt, "messages")
        return self.work([Prompt(ids)], n, params, patience, chat.constraint)

    def work(
        self,
        prompts: list[Prompt],
        n: int | None,
        params: SamplingParams,
        patience: Patience,
        constraint: Constraint | None = None,
    ) -> Work:
        """The work of continuing prompts. constraint: a grammar at its start, instead of that of `params`."""
        choices = len(prompts) * (n or 1)
        if choices > CHOICES:
            raise ApiError(400, f"n: {choices} choices of all prompts are too many; ask for {CHOICES} at most", "n")
        tokens = sum(len(prompt.ids) for prompt in prompts)
        told = (1 + (params.logprobs or 0)) * (n or 1) * tokens * params.prompt_logprobs
        if told > TOLD:
            raise ApiError(400, f"logprobs: {told} of echoed prompts are too many; send fewer prompts", "logprobs")

        def start(prompt: Prompt, choice: int) -> Stream:
            return self.model.start(prompt.ids, params, choice, prompt.heal, constraint)

        return Work(self.model, prompts, n or 1, start, self._slots, patience, self._metrics)

    def embedding(self, prompts: list[list[int]], pooling: Pooling, dimensions: int | None, patience: Patience) -> Work:
        """The work of embedding prompts."""
        check_embedding(self.model.runner, pooling, dimensions)

        def start(prompt: Prompt, choice: int) -> Stream:
            return self.model.begin_embedding(prompt.ids, pooling)

        return Work(self.model, [Prompt(ids) for ids in prompts], 1, start, AT_ONCE, patience, self._metrics)

    def _head(self, id: str) -> dict[str, Any]:
        return {"id": id, "created": int(time.time()), "model": self.name, "system_fingerprint": self._fingerprint}


@contextmanager
def named(name: str) -> Generator[None]:
    """Report errors about a text under the request's name of the field."""
    try:
        yield
    except UserError as error:
        raise (error.renamed(name) if error.field == "text" else error) from None


@contextmanager
def renamed(places: dict[str, str]) -> Generator[None]:
    """Report errors about a field under the name that the request has for it."""
    try:
        yield
    except UserError as error:
        place = places.get(error.name)
        raise (error if place is None else error.renamed(place + error.field.removeprefix(error.name))) from None


def _message(message: ChatMessage) -> dict[str, Any]:
    return message.model_dump(include={"role", "content", "name", "tool_calls", "tool_call_id"}, exclude_none=True)


def _tools(asked: api.ChatRequest) -> ToolUse | None:
    choice = asked.tool_choice or "auto"
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
    named = choice if isinstance(choice, str) else choice.model_dump()
    return tool_use(tools, named, asked.parallel_tool_calls is not False)


def _usage(asked: api.Generation) -> bool:
    """Whether the last chunk of a stream has the usage."""
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _sampling(asked: api.Generation, max_tokens: int) -> dict[str, Any]:
    """Fields of SamplingParams that the request sets, with OpenAI's defaults for the others."""
    given = {name: value for name in _SAMPLING if (value := getattr(asked, name, None)) is not None}
    if asked.seed is not None:
        given["seed"] = asked.seed % SEEDS
    return {"temperature": 1.0, "max_tokens": max_tokens, **given, **_form(asked.response_format)}


def _form(form: Any) -> dict[str, Any]:
    match form:
        case api.JsonObject():
            return {"json_schema": {"type": "object"}}
        case api.JsonSchema():
            return {"json_schema": form.json_schema.schema_}
        case api.Regex():
            return {"regex": form.regex}
        case api.Grammar():
            return {"grammar": form.grammar}
        case _:
            return {}
