"""An answer as a response object, or as the events of a stream that build it up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pydantic

from kiara_runtime.engine import Piece
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Work
from kiara_runtime.server.responses import objects as answers
from kiara_runtime.server.responses.requests import ResponsesRequest
from kiara_runtime.server.voice import Voice
from kiara_runtime.tools import CallFormat, CallPart, CallReader, call_id

Keep = Callable[[answers.ResponseObject, dict[str, Any]], None]


class ResponsesVoice(Voice):
    """One answer: an item for its text, where there is any, and one for each call."""

    def __init__(self, asked: ResponsesRequest, id: str, model: str, work: Work, calls: CallFormat | None, keep: Keep):
        """keep: stores the finished response, with the answer as a message of a chat template."""
        super().__init__(work)
        self._asked, self._id, self._model, self._keep = asked, f"resp_{id}", model, keep
        self._created = int(time.time())
        self._reader = CallReader(calls)
        self._items: list[answers.OutputMessage | answers.OutputCall] = []
        self._number = 0
        self._cut = False

    def opening(self) -> Iterable[pydantic.BaseModel]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def chunks(self, index: int, piece: Piece) -> Iterable[pydantic.BaseModel]:
        for part in self._reader.feed(piece):
            yield from self._text(part) if isinstance(part, str) else self._call(part)
        self._cut = piece.finish_reason == "length"

    def closing(self) -> Iterable[pydantic.BaseModel]:
        if not self._items:  # an empty answer is a message, too
            yield from self._text("")
        yield from self._end_item(last=True)
        response = self._finished()
        yield self._event(f"response.{response.status}", response=response)

    def whole(self, choices: Sequence[list[Piece]]) -> pydantic.BaseModel:
        [pieces] = choices
        for piece in pieces:
            for _ in self.chunks(0, piece):
                pass
        for _ in self._text("") if not self._items else ():
            pass
        for _ in self._end_item(last=True):
            pass
        return self._finished()

    def event(self, chunk: pydantic.BaseModel) -> bytes:
        kind = str(getattr(chunk, "type", "error"))
        data = chunk.model_dump_json(exclude={name for name, value in chunk if value is None})
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data.encode())

    def failure(self, refusal: ApiError) -> bytes:
        detail = refusal.body.error.model_dump_json(include={"message", "param", "code"})
        data = f'{{"type":"error","sequence_number":{self._number},{detail[1:]}'
        return b"event: error\ndata: %s\n\n" % data.encode()

    def _text(self, text: str) -> Iterator[answers.ResponseEvent]:
        item = self._items[-1] if self._items else None
        if not isinstance(item, answers.OutputMessage):
            yield from self._end_item()
            part = answers.OutputText(text="", annotations=[], logprobs=[])
            item = answers.OutputMessage(id=f"msg_{call_id()}", status="in_progress", content=[])
            yield self._begun(item)
            yield self._event("response.content_part.added", **self._place(item), content_index=0, part=part)
            item.content = [part]
        item.content[0].text += text
        if text:
            place = {**self._place(item), "content_index": 0}
            yield self._event("response.output_text.delta", **place, logprobs=[], delta=text)

    def _call(self, part: CallPart) -> Iterator[answers.ResponseEvent]:
        if part.name is not None:
            yield from self._end_item()
            id, name = f"fc_{call_id()}", part.name
            yield self._begun(
                answers.OutputCall(id=id, call_id=call_id(), name=name, arguments="", status="in_progress")
            )
        item = self._items[-1]
        assert isinstance(item, answers.OutputCall)
        item.arguments += part.arguments
        if part.arguments:
            yield self._event("response.function_call_arguments.delta", **self._place(item), delta=part.arguments)

    def _begun(self, item: answers.OutputMessage | answers.OutputCall) -> answers.ResponseEvent:
        self._items.append(item)
        index = len(self._items) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _end_item(self, last: bool = False) -> Iterator[answers.ResponseEvent]:
        """The events that end the item that is open, if there is one."""
        if not self._items:
            return
        item = self._items[-1]
        item.status = "incomplete" if last and self._cut else "completed"
        if isinstance(item, answers.OutputMessage):
            place, [part] = {**self._place(item), "content_index": 0}, item.content
            yield self._event("response.output_text.done", **place, text=part.text, logprobs=[])
            yield self._event("response.content_part.done", **place, part=part)
        else:
            told = {"name": item.name, "arguments": item.arguments}
            yield self._event("response.function_call_arguments.done", **self._place(item), **told)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _place(self, item: answers.OutputMessage | answers.OutputCall) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._items) - 1}

    def _event(self, type: str, **fields: Any) -> answers.ResponseEvent:
        self._number += 1
        return answers.ResponseEvent(type=type, sequence_number=self._number - 1, **fields)

    def _finished(self) -> answers.ResponseObject:
        response = self._response("incomplete" if self._cut else "completed")
        if response.store:
            self._keep(response, self._message())
        return response

    def _message(self) -> dict[str, Any]:
        """The answer as a chat template takes it; calls that max_tokens cut off are left out."""
        texts = [item.content[0].text for item in self._items if isinstance(item, answers.OutputMessage)]
        calls = [
            {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            for item in self._items
            if isinstance(item, answers.OutputCall) and item.status == "completed"
        ]
        return {"role": "assistant", "content": "".join(texts), **({"tool_calls": calls} if calls else {})}

    def _response(self, status: answers.ItemStatus) -> answers.ResponseObject:
        asked = self._asked
        text = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
        choice = asked.tool_choice or "auto"
        return answers.ResponseObject(
            id=self._id,
            object="response",
            created_at=self._created,
            model=self._model,
            status=status,
            output=self._items if status != "in_progress" else [],
            error=None,
            incomplete_details=answers.Incomplete(reason="max_output_tokens") if status == "incomplete" else None,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            previous_response_id=asked.previous_response_id,
            store=asked.store is not False,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            text={"format": {"type": "text"}, **text},
            tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
            tools=[tool.model_dump() for tool in asked.tools or ()],
            top_p=1.0 if asked.top_p is None else asked.top_p,
            truncation="disabled",
            background=False,
            reasoning={"effort": None, "summary": None},
            usage=None if status == "in_progress" else self._usage(),
            user=asked.user,
        )

    def _usage(self) -> answers.ResponsesUsage:
        prompt, completion = self._work.prompt_tokens, self._work.completion_tokens
        return answers.ResponsesUsage(
            input_tokens=prompt,
            input_tokens_details=answers.InputDetails(cached_tokens=self._work.cached_tokens),
            output_tokens=completion,
            output_tokens_details=answers.OutputDetails(reasoning_tokens=0),
            total_tokens=prompt + completion,
        )
