"""A loaded model: `generate`, `stream`, `score`, `embed` or `chat` with it. Bundles are opened in `loading`."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as List
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.embeddings import AT_ONCE, begin, check_embedding, vector_of
from kiara_runtime.engine import (
    ModelFacts,
    Pooling,
    Runner,
    Sequence,
)
from kiara_runtime.errors import BusyError, ContextError, UserError
from kiara_runtime.sampling import Sampling, SamplingParams, check_integer, sampling_params
from kiara_runtime.stream import Generation, Score, Stream
from kiara_runtime.tokens import Message, Tokenizer, chat_ids, infill_ends, infill_ids
from kiara_runtime.tools import CallFormat, Choice, Conversation, Definition, ToolUse, conversation, tool_use

if TYPE_CHECKING:
    from kiara_runtime.sampling import Constraint

Prompt = str | List[int]


class Model:
    """A language model; a `Runner` computes its logits. Threads may share it; `with` closes it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        runner: Runner,
        context_length: int,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        bos_token_id: int,
    ) -> None:
        """vocab_size: of the logits; larger than the tokenizer's where the embedding table is padded."""
        self.tokenizer, self.runner = tokenizer, runner
        self.context_length, self.vocab_size = context_length, vocab_size
        self.eos_token_ids, self.bos_token_id = eos_token_ids, bos_token_id
        self._longer: dict[int, list[int]] = {}  # by token: the longer tokens that begin with its text
        self._facts = ModelFacts(tokenizer.token_bytes, eos_token_ids, context_length)

    def tokenize(self, text: str) -> list[int]:
        """The token ids of `text`. Names of special tokens are treated as ordinary text."""
        return self.tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """The token ids of a text prompt, including what the model expects first, such as a begin-of-text token."""
        return [*self.tokenizer.prompt_prefix, *self.tokenize(text)]

    def detokenize(self, ids: List[int]) -> str:
        """The text of token ids. Invalid UTF-8 becomes U+FFFD; special tokens are left out."""
        return self.tokenizer.decode(ids)

    def chat_prompt(
        self,
        messages: List[Message],
        tools: List[Mapping[str, Any]] | None = None,
        documents: List[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Render a conversation with the model's chat template, as token ids; a prompt for `generate`.

        messages: dictionaries with `role` and `content`, a text or a list of `{"type": "text", "text": ...}`. tools,
        documents: dictionaries passed to the template, which may ignore them.
        """
        return chat_ids(self.tokenizer, messages, tools, documents)

    def generate(self, prompt: Prompt, suffix: str | None = None, **sampling: Unpack[Sampling]) -> Generation:
        """Continue `prompt`, text or token ids. sampling: keywords of `Sampling`, such as max_tokens=64.

        suffix: write only what is between `prompt`, a text, and this one; for models that learned to fill in the
        middle. Raises UserError, naming the field, for a value out of range or an unknown keyword.
        """
        return self.stream(prompt, suffix, **sampling).generation()

    def stream(self, prompt: Prompt, suffix: str | None = None, **sampling: Unpack[Sampling]) -> Stream:
        """Like `generate`, one piece per token. Checks the arguments and queues the request before it returns."""
        params = sampling_params(sampling)
        if suffix is not None:
            return self.start(*self.infill(prompt, suffix, params))
        return self.start(self.prompt_ids(prompt), params, heal=isinstance(prompt, str))

    def infill(self, prompt: Prompt, suffix: str, params: SamplingParams) -> tuple[list[int], SamplingParams]:
        """Prompt ids after which the model fills in the middle, and parameters that stop where the middle ends."""
        if not isinstance(prompt, str):
            raise UserError("suffix", "needs a prompt that is a text", "give the prompt as one text")
        ends = [] if params.ignore_eos else infill_ends(self.tokenizer)
        stops = tuple(dict.fromkeys([*params.stop_token_ids, *ends]))
        ids = self.prompt_ids(infill_ids(self.tokenizer, prompt, suffix))
        return ids, dataclasses.replace(params, stop_token_ids=stops)

    def generate_all(self, prompts: List[Prompt], n: int = 1, **sampling: Unpack[Sampling]) -> list[list[Generation]]:
        """`n` continuations of each prompt, batched. The first of each equals `generate` with the same seed."""
        check_integer("n", n, 1, 1024)
        if isinstance(prompts, str):
            raise UserError("prompts", "a single text, not a list", "give a list, or use generate for one prompt")
        params = sampling_params(sampling)
        ids = [(self.prompt_ids(prompt), isinstance(prompt, str)) for prompt in prompts]
        found: list[Generation] = []
        streams: list[Stream] = []
        for (one, heal), choice in itertools.product(ids, range(n)):
            while True:
                try:
                    streams.append(self.start(one, params, choice, heal))
                    break
                except BusyError:
                    if len(found) == len(streams):
                        raise
                    found.append(streams[len(found)].generation())
        found += [stream.generation() for stream in streams[len(found) :]]
        return [found[i : i + n] for i in range(0, len(found), n)]

    def chat(
        self,
        messages: List[Message],
        tools: List[Definition] | None = None,
        tool_choice: Choice = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """The answer to a conversation. Raises UserError where the model has no chat template.

        tools: what the model may call: definitions in OpenAI's form, or annotated Python functions. tool_choice:
        "auto", "none", "required", or `{"type": "function", "function": {"name": ...}}`. parallel_tool_calls: whether
        an answer may have several calls. Their arguments follow the tools' schemas; `tool_calls` of the answer has
        them, and nothing is run (`kiara_runtime.functions` does).
        """
        use = tool_use(tools, tool_choice, parallel_tool_calls)
        stream, format = self.begin_chat(messages, use, sampling_params(sampling))
        return stream.generation(format)

    def begin_chat(
        self, messages: List[Message], use: ToolUse | None, params: SamplingParams
    ) -> tuple[Stream, CallFormat | None]:
        """The stream of an answer, and the format of the calls in it, if it may have some."""
        chat = self.conversation(messages, use, params)
        stream = self.start(self.prompt_ids(chat.prompt, "messages"), params, constraint=chat.constraint)
        return stream, chat.format

    def conversation(
        self, messages: List[Message], use: ToolUse | None, params: SamplingParams, continued: bool = False
    ) -> Conversation:
        """The prompt of a conversation whose answer may call tools, and the grammar that holds the answer.

        continued: the last message is the beginning of the answer.
        """
        return conversation(self.tokenizer, self.vocab_size, self.eos_token_ids, messages, use, params, continued)

    def score(self, prompt: Prompt, continuation: Prompt) -> Score:
        """The log-likelihood of `continuation` after `prompt`; each text is tokenized separately."""
        given = self.prompt_ids(prompt)
        text = isinstance(continuation, str)
        scored = self.tokenize(continuation) if text else self.tokenizer.check_ids(continuation)
        params = SamplingParams(max_tokens=0, logprobs=1, seed=0)
        ids = self.prompt_ids([*given, *scored], "continuation") if scored else given
        sequence = Sequence(ids, params, self._facts, scored_from=len(given))
        self.runner.submit(sequence)
        Stream(self.runner, sequence, 0).generation()
        tokens = sequence.prompt_logprobs
        return Score(sum(one.logprob for one in tokens), all(one.token == one.top[0][0] for one in tokens), tokens)

    def embed(
        self,
        texts: List[Prompt],
        pooling: Pooling = "mean",
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """The embeddings (N, D) of N texts, from the model's last hidden states.

        pooling: "mean" of all tokens, or the "last" token. dimensions: keep only the first D. normalize: to a length
        of 1, so that dot products are cosines. Raises UserError if the bundle was exported without embeddings.
        """
        if isinstance(texts, str):
            raise UserError("texts", "a single text, not a list", "give a list")
        check_embedding(self.runner, pooling, dimensions)
        running, found = deque[Stream](), list[NDArray[np.float32]]()
        for ids in [self.prompt_ids(text, f"texts[{i}]") for i, text in enumerate(texts)]:
            if len(running) == AT_ONCE:
                found.append(vector_of(running.popleft(), dimensions, normalize))
            running.append(self.begin_embedding(ids, pooling))
        found += [vector_of(stream, dimensions, normalize) for stream in running]
        return np.stack(found) if found else np.zeros((0, dimensions or self.runner.hidden_size or 0), np.float32)

    def begin_embedding(self, ids: list[int], pooling: Pooling) -> Stream:
        """Queue ids from `prompt_ids`, to embed them."""
        return begin(self.runner, self._facts, ids, pooling)

    def prompt_ids(self, prompt: Prompt, name: str = "prompt") -> list[int]:
        """The token ids of a prompt. Raises ContextError if they leave no room in the context for a new token."""
        ids = self.encode_prompt(prompt) if isinstance(prompt, str) else self.tokenizer.check_ids(prompt)
        if len(ids) >= self.context_length:
            raise ContextError(
                name,
                f"{len(ids)} tokens leave no room in the model's context of {self.context_length} tokens",
                f"shorten it to {self.context_length - 1} at most",
            )
        return ids or [self.bos_token_id]

    def wait(self, streams: List[Stream], timeout: float | None = None) -> None:
        """Return once one of the streams is ready, or after `timeout` seconds and the end of the current step."""
        self.runner.wait([stream.sequence for stream in streams], timeout)

    def close(self) -> None:
        """Free the memory. Later requests raise ClosedError."""
        self.runner.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def start(
        self,
        prompt: list[int],
        params: SamplingParams,
        choice: int = 0,
        heal: bool = False,
        constraint: Constraint | None = None,
    ) -> Stream:
        """Like `stream`, for ids from `prompt_ids`. choice: index of the continuation; each has its own random draws.

        heal: allow token healing, because the prompt is a text that may end inside a token. constraint: a grammar at
        its start, instead of that of `params`; it is copied.
        """
        params.check_vocabulary(self.vocab_size)
        constraint = self._constraint(params) if constraint is None else constraint.copy()
        plain = constraint is None and params.max_tokens > 0 and not params.prompt_logprobs
        healing = (
            self._healing(prompt, {*params.banned_tokens, *params.stop_token_ids})
            if heal and params.token_healing and plain
            else None
        )
        sequence = Sequence(prompt, params, self._facts, choice, constraint, healing=healing)
        self.runner.submit(sequence)
        return Stream(self.runner, sequence, params.seed or 0)

    def _healing(self, prompt: list[int], never: Iterable[int]) -> NDArray[np.bool_] | None:
        """Mask (V,) of the tokens that may replace the prompt's last one: itself and those that begin with its text,
        except `never`. None if no other token begins with its text.
        """
        last, texts = prompt[-1], self.tokenizer.token_bytes
        if len(prompt) < 2 or last >= len(texts) or not texts[last]:
            return None
        if last not in self._longer:
            self._longer[last] = [i for i, text in enumerate(texts) if i != last and text.startswith(texts[last])]
        if not self._longer[last]:
            return None
        allowed = np.zeros(self.vocab_size, dtype=np.bool_)
        allowed[self._longer[last]] = True
        allowed[list(never)] = False
        allowed[last] = True
        return allowed

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.json_schema is params.regex is params.grammar is None:
            return None
        from kiara_runtime.sampling import constrain

        return constrain(
            self.tokenizer,
            self.vocab_size,
            self.eos_token_ids,
            json_schema=params.json_schema,
            regex=params.regex,
            grammar=params.grammar,
        )
