"""The routes, each a few lines over `service`. Errors, headers, log and metrics are handled in one place."""

from __future__ import annotations

import codecs
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, TypeVar

import flask
import pydantic
from werkzeug.exceptions import HTTPException

from kiara_runtime.server.anthropic.messages import error_body
from kiara_runtime.server.anthropic.requests import CountRequest, MessagesRequest
from kiara_runtime.server.anthropic.responses import TokenCount
from kiara_runtime.server.guard import ApiError, as_api_error
from kiara_runtime.server.jobs import ClientGoneError, Patience, Work
from kiara_runtime.server.openai import requests as api
from kiara_runtime.server.openai import responses as answers
from kiara_runtime.server.openai.choices import apart
from kiara_runtime.server.openapi import document
from kiara_runtime.server.records import GONE, Record
from kiara_runtime.server.responses.objects import Deleted
from kiara_runtime.server.responses.requests import ResponsesRequest
from kiara_runtime.server.service import SHOWN, Service, named
from kiara_runtime.server.voice import Voice

MESSAGES = "/v1/messages"
HEARTBEAT = 1.0  # seconds without a token after which a comment is streamed
PAGE = dict.fromkeys(("page.js", "client.js", "elements.js", "snippets.js"), "text/javascript") | {
    "index.html": "text/html",
    "style.css": "text/css",
}
Asked = TypeVar("Asked", bound=pydantic.BaseModel)
Begin = Callable[[Asked, str, Patience], tuple[Work, Voice]]


def create_app(service: Service) -> flask.Flask:
    """A WSGI application. `service` may still be loading."""
    app = flask.Flask("kiara", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.max_body
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = app.url_map.merge_slashes = False  # no redirects
    _add_generation(app, service)
    _add_rest(app, service)
    _add_page(app)
    _add_hooks(app, service)
    return app


def routes(app: flask.Flask) -> frozenset[str]:
    """Paths of routes without parameters."""
    return frozenset(rule.rule for rule in app.url_map.iter_rules() if "<" not in rule.rule)


def _add_hooks(app: flask.Flask, service: Service) -> None:
    fixed = routes(app)

    def before() -> flask.Response | None:
        request = flask.request
        route = request.url_rule.rule if request.url_rule else request.path if request.path in fixed else "unknown"
        flask.g.record = Record(uuid.uuid4().hex, request.method, route)
        return service.guard.check(request)

    def after(response: flask.Response) -> flask.Response:
        record: Record = flask.g.record
        record.status = record.status or response.status_code
        response.headers["X-Request-Id"] = record.id
        response.headers.update(service.guard.headers(flask.request.headers.get("Origin")))
        response.call_on_close(lambda: record.end(service.metrics, service.log))
        return response

    def refuse(error: Exception) -> flask.Response:
        refusal = as_api_error(error) or _defect(service, flask.g.record)
        flask.g.record.details["error"] = refusal.reason
        return refusal.response(error_body(refusal) if flask.request.path.startswith(MESSAGES) else None)

    app.before_request(before)
    app.after_request(after)
    app.register_error_handler(Exception, refuse)
    app.register_error_handler(HTTPException, refuse)


def _add_generation(app: flask.Flask, service: Service) -> None:
    def answer(kind: type[Asked], begin: Begin[Asked]) -> flask.Response:
        """Admit, parse, start and answer a request, as a whole or as a stream."""
        record: Record = flask.g.record
        patience = Patience(time.monotonic() + service.settings.timeout, _gone(flask.request))
        service.admission.enter()
        work: Work | None = None
        try:
            _ = service.model
            asked: Any = _read(service, kind)
            _note(record, service, asked)
            work, voice = begin(asked, record.id, patience)
            if asked.stream:
                record.status = GONE  # unless it is completed
                response = flask.Response(_events(service, record, work, voice), mimetype="text/event-stream")
                response.call_on_close(lambda: _end(service, record, work))
                return response
            response = _json(_whole(work, voice))
        except ClientGoneError:
            record.status = GONE
            response = flask.Response(status=GONE)
        except BaseException:
            _end(service, record, work)
            raise
        _end(service, record, work)
        return response

    @app.post("/v1/completions")
    def completions() -> flask.Response:
        return answer(api.CompletionRequest, service.complete)

    @app.post("/v1/chat/completions")
    def chat_completions() -> flask.Response:
        return answer(api.ChatRequest, service.chat)

    @app.post("/v1/responses")
    def respond() -> flask.Response:
        return answer(ResponsesRequest, service.respond)

    @app.post(MESSAGES)
    def messages() -> flask.Response:
        return answer(MessagesRequest, service.messages)

    @app.post(f"{MESSAGES}/count_tokens")
    def count_tokens() -> flask.Response:
        with service.beside:
            return _json(TokenCount(input_tokens=service.count(_read(service, CountRequest))))


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
                yield b": waiting\n\n"
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
        refusal = as_api_error(error) or _defect(service, record)
        record.status = refusal.status
        record.details["error"] = refusal.reason
        yield voice.failure(refusal)


def _defect(service: Service, record: Record) -> ApiError:
    """Log the current exception, and give the client the id of its log line."""
    service.log.write({"id": record.id, "error": traceback.format_exc().splitlines()[-20:]})
    return ApiError(500, f"internal error; see the entry {record.id} of the server's log")


def _end(service: Service, record: Record, work: Work | None) -> None:
    if work is not None:
        first = work.streams[0].sequence
        record.details |= {"prompt_tokens": work.prompt_tokens, "completion_tokens": work.completion_tokens}
        record.details["queue_seconds"] = round(first.queue_seconds, 4)
        if len(first.times) > 1 and len(first.tokens) > first.prompt_tokens:
            record.details["first_token_seconds"] = round(first.times[1] - first.times[0], 4)
        work.close()
    service.admission.leave()


def _note(record: Record, service: Service, asked: Any) -> None:
    if asked.user:
        record.details["user"] = asked.user
    if service.log.prompts:
        record.details["asked"] = asked.model_dump(mode="json", by_alias=True, exclude_none=True)


def _read(service: Service, kind: type[Asked]) -> Asked:
    data = flask.request.get_data(cache=False)
    with service.reading:
        return kind.model_validate_json(data.removeprefix(codecs.BOM_UTF8))


def _json(model: pydantic.BaseModel) -> flask.Response:
    return flask.Response(model.model_dump_json(), mimetype="application/json")


def _gone(request: flask.Request) -> Callable[[], bool]:
    return request.environ.get("waitress.client_disconnected", lambda: False)


def _add_rest(app: flask.Flask, service: Service) -> None:
    @app.get("/v1/responses/<id>")
    def response(id: str) -> flask.Response:
        return _json(service.store.get(id).response)

    @app.delete("/v1/responses/<id>")
    def delete_response(id: str) -> flask.Response:
        service.store.delete(id)
        return _json(Deleted(id=id))

    @app.get("/v1/models")
    def models() -> flask.Response:
        return _json(answers.ModelList(data=[service.card()]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> flask.Response:
        service.check_model(name)
        return _json(service.card())

    @app.post("/tokenize")
    def tokenize() -> flask.Response:
        with service.beside, named("prompt"):
            asked, model = _read(service, api.TokenizeRequest), service.model
            service.check_model(asked.model)
            plain = asked.add_special_tokens is False
            ids = model.tokenize(asked.prompt) if plain else model.encode_prompt(asked.prompt)
        texts = [service.token_texts.text(token) for token in ids] if asked.return_token_strs else None
        return _json(
            answers.Tokenized(tokens=ids, count=len(ids), max_model_len=model.context_length, token_strs=texts)
        )

    @app.post("/detokenize")
    def detokenize() -> flask.Response:
        with service.beside:
            asked = _read(service, api.DetokenizeRequest)
            service.check_model(asked.model)
            return _json(answers.Detokenized(prompt=service.model.detokenize(asked.tokens)))

    @app.get("/tokenizer_info")
    def tokenizer_info() -> flask.Response:
        tokenizer = service.model.tokenizer
        known = {"engine": tokenizer.engine, "vocab_size": tokenizer.vocab_size}
        return flask.jsonify({**tokenizer.config, **known})

    @app.get("/health")
    def health() -> flask.Response:
        return _json(answers.Status(status="ok"))

    @app.get("/ready")
    def ready() -> flask.Response:
        response = _json(answers.Status(status=service.status))
        response.status_code = 200 if service.status == "ok" else 503
        return response

    @app.get("/metrics")
    def metrics() -> flask.Response:
        return flask.Response(service.metrics.text(), mimetype="text/plain; version=0.0.4")

    @app.get("/openapi.json")
    def openapi() -> flask.Response:
        return flask.jsonify(document(service.card(), bool(service.guard.keys)))

    @app.get("/bundle/<name>")
    def bundle_file(name: str) -> flask.Response:
        _ = service.model
        if name not in service.files:
            raise ApiError(404, f"bundle: has no {name:.80}; it has {', '.join(service.files)}")
        return flask.Response(service.files[name], content_type=SHOWN[name])


def _add_page(app: flask.Flask) -> None:
    folder = files("kiara_runtime.server") / "page"

    contents = {name: (folder / name).read_bytes() for name in PAGE}

    def shown(name: str) -> flask.Response:
        return flask.Response(contents[name], mimetype=PAGE[name])

    @app.get("/favicon.ico")
    def no_icon() -> flask.Response:
        return flask.Response(status=204)  # browsers request it automatically

    for name in PAGE:
        path = "" if name == "index.html" else name
        app.add_url_rule(f"/{path}", name, shown, defaults={"name": name})
