"""Answers a request that generates text, as a whole or as a stream, in the format of its endpoint."""

from __future__ import annotations

import codecs
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import flask
import pydantic

from kiara_runtime.server.guard import ApiError, as_api_error
from kiara_runtime.server.jobs import ClientGoneError, Patience, Work
from kiara_runtime.server.openai.choices import apart
from kiara_runtime.server.records import GONE, Record
from kiara_runtime.server.served import ServedModel
from kiara_runtime.server.service import Service
from kiara_runtime.server.voice import Voice

HEARTBEAT = 1.0  # seconds without a token after which a comment is streamed
Asked = TypeVar("Asked", bound=pydantic.BaseModel)
Begin = Callable[[ServedModel, Asked, str, Patience], tuple[Work, Voice]]


def answer(service: Service, kind: type[Asked], begin: Begin[Asked]) -> flask.Response:
    """Admit, parse, start and answer a request, as a whole or as a stream."""
    record: Record = flask.g.record
    patience = patience_of(service)
    with ExitStack() as held:  # until the response has been sent
        held.enter_context(service.admission)
        try:
            asked: Any = read(service, kind)
            _note(record, service, asked)
            served = held.enter_context(service.models.use(asked.model, patience.check))
            record.details["model"] = served.name
            work, voice = begin(served, asked, record.id, patience)
            held.callback(_end, record, work)
            if not asked.stream:
                return as_json(_whole(work, voice))
        except ClientGoneError:
            record.status = GONE
            return flask.Response(status=GONE)
        record.status = GONE  # unless it is completed
        response = flask.Response(_events(service, record, work, voice), mimetype=voice.mimetype)
        response.call_on_close(held.pop_all().close)
        return response


def patience_of(service: Service) -> Patience:
    """The deadline of the current request, and whether its client is still there."""
    return Patience(time.monotonic() + service.settings.timeout, _gone(flask.request))


def use(service: Service, name: str | None) -> AbstractContextManager[ServedModel]:
    """Keep a model loaded during a request that generates nothing."""
    return service.models.use(name, patience_of(service).check)


def _whole(work: Work, voice: Voice) -> pydantic.BaseModel:
    found: dict[int, list[Any]] = {}
    for event in work.events():
        if event is not None:
            found.setdefault(event[0], []).append(event[1])
    return voice.whole([found[index] for index in sorted(found)])


def _events(service: Service, record: Record, work: Work, voice: Voice) -> Iterator[bytes]:
    """Server-sent events; a comment when no token arrives, so that both sides notice a lost connection."""
    last = time.monotonic()
    try:
        for chunk in voice.opening():
            yield voice.event(chunk)
        for event in work.events():
            if event is None:
                if time.monotonic() - last < HEARTBEAT:
                    continue
                yield voice.waiting
            else:
                for chunk in (chunk for part in apart(event[1]) for chunk in voice.chunks(event[0], part)):
                    yield voice.event(chunk)
                    last = time.monotonic()
                continue
            last = time.monotonic()
        for chunk in voice.closing():
            yield voice.event(chunk)
        yield voice.end
        record.status = 200
    except ClientGoneError:
        return
    except Exception as error:
        refusal = as_api_error(error) or defect(service, record)
        record.status = refusal.status
        record.details["error"] = refusal.reason
        yield voice.failure(refusal)


def defect(service: Service, record: Record) -> ApiError:
    """Log the current exception, and give the client the id of its log line."""
    service.log.write({"id": record.id, "error": traceback.format_exc().splitlines()[-20:]}, logging.ERROR)
    return ApiError(500, f"internal error; see the entry {record.id} of the server's log")


def _end(record: Record, work: Work) -> None:
    first = work.streams[0].sequence
    record.queued_ns = time.time_ns() - int(1e9 * (time.perf_counter() - first.times[0]))
    record.details |= {"prompt_tokens": work.prompt_tokens, "completion_tokens": work.completion_tokens}
    record.details["queue_seconds"] = round(first.queue_seconds, 4)
    if len(first.times) > 1 and len(first.tokens) > first.prompt_tokens:
        record.details["first_token_seconds"] = round(first.times[1] - first.times[0], 4)
    work.close()


def _note(record: Record, service: Service, asked: Any) -> None:
    if asked.user:
        record.details["user"] = asked.user
    if service.log.prompts:
        record.details["asked"] = asked.model_dump(mode="json", by_alias=True, exclude_none=True)


def read(service: Service, kind: type[Asked]) -> Asked:
    data = flask.request.get_data(cache=False)
    with service.reading:
        return kind.model_validate_json(data.removeprefix(codecs.BOM_UTF8))


def as_json(model: pydantic.BaseModel) -> flask.Response:
    return flask.Response(model.model_dump_json(), mimetype="application/json")


def _gone(request: flask.Request) -> Callable[[], bool]:
    return request.environ.get("waitress.client_disconnected", lambda: False)
