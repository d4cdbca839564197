"""The routes, each a few lines over `service`. Errors, headers, log and metrics are handled in one place."""

from __future__ import annotations

import uuid
from functools import partial
from importlib.resources import files

import flask
import pydantic
from werkzeug.exceptions import HTTPException

from kiara_runtime import __version__
from kiara_runtime.server.anthropic.messages import error_body as anthropic_error
from kiara_runtime.server.anthropic.requests import CountRequest, MessagesRequest
from kiara_runtime.server.anthropic.responses import TokenCount
from kiara_runtime.server.generation import answer, as_json, defect, read
from kiara_runtime.server.guard import ApiError, as_api_error
from kiara_runtime.server.ollama import endpoints
from kiara_runtime.server.ollama import requests as ollama
from kiara_runtime.server.ollama.chat import error_body as ollama_error
from kiara_runtime.server.ollama.objects import Version
from kiara_runtime.server.openai import requests as api
from kiara_runtime.server.openai import responses as answers
from kiara_runtime.server.openapi import document
from kiara_runtime.server.records import Record
from kiara_runtime.server.responses.objects import Deleted
from kiara_runtime.server.responses.requests import ResponsesRequest
from kiara_runtime.server.service import SHOWN, Service, named

MESSAGES = "/v1/messages"
PAGE = dict.fromkeys(("page.js", "client.js", "elements.js", "snippets.js"), "text/javascript") | {
    "index.html": "text/html",
    "style.css": "text/css",
}


def create_app(service: Service) -> flask.Flask:
    """A WSGI application. `service` may still be loading."""
    app = flask.Flask("kiara", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.max_body
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = app.url_map.merge_slashes = False  # no redirects
    _add_generation(app, service)
    _add_rest(app, service)
    _add_tokens(app, service)
    _add_ollama(app, service)
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
        refusal = as_api_error(error) or defect(service, flask.g.record)
        flask.g.record.details["error"] = refusal.reason
        return refusal.response(_error_form(flask.request.path, refusal))

    app.before_request(before)
    app.after_request(after)
    app.register_error_handler(Exception, refuse)
    app.register_error_handler(HTTPException, refuse)


def _add_generation(app: flask.Flask, service: Service) -> None:
    @app.post("/v1/completions")
    def completions() -> flask.Response:
        return answer(service, api.CompletionRequest, service.complete)

    @app.post("/v1/chat/completions")
    def chat_completions() -> flask.Response:
        return answer(service, api.ChatRequest, service.chat)

    @app.post("/v1/responses")
    def respond() -> flask.Response:
        return answer(service, ResponsesRequest, service.respond)

    @app.post(MESSAGES)
    def messages() -> flask.Response:
        return answer(service, MessagesRequest, service.messages)

    @app.post("/api/chat")
    def ollama_chat() -> flask.Response:
        return answer(service, ollama.OllamaChatRequest, partial(endpoints.chat, service))

    @app.post("/api/generate")
    def ollama_generate() -> flask.Response:
        return answer(service, ollama.GenerateRequest, partial(endpoints.generate, service))

    @app.post(f"{MESSAGES}/count_tokens")
    def count_tokens() -> flask.Response:
        with service.beside:
            return as_json(TokenCount(input_tokens=service.count(read(service, CountRequest))))


def _add_rest(app: flask.Flask, service: Service) -> None:
    @app.get("/v1/responses/<id>")
    def response(id: str) -> flask.Response:
        return as_json(service.store.get(id).response)

    @app.delete("/v1/responses/<id>")
    def delete_response(id: str) -> flask.Response:
        service.store.delete(id)
        return as_json(Deleted(id=id))

    @app.get("/v1/models")
    def models() -> flask.Response:
        return as_json(answers.ModelList(data=[service.card()]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> flask.Response:
        service.check_model(name)
        return as_json(service.card())

    @app.get("/health")
    def health() -> flask.Response:
        return as_json(answers.Status(status="ok"))

    @app.get("/ready")
    def ready() -> flask.Response:
        response = as_json(answers.Status(status=service.status))
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


def _add_tokens(app: flask.Flask, service: Service) -> None:
    @app.post("/tokenize")
    def tokenize() -> flask.Response:
        with service.beside, named("prompt"):
            asked, model = read(service, api.TokenizeRequest), service.model
            service.check_model(asked.model)
            plain = asked.add_special_tokens is False
            ids = model.tokenize(asked.prompt) if plain else model.encode_prompt(asked.prompt)
        texts = [service.token_texts.text(token) for token in ids] if asked.return_token_strs else None
        return as_json(
            answers.Tokenized(tokens=ids, count=len(ids), max_model_len=model.context_length, token_strs=texts)
        )

    @app.post("/detokenize")
    def detokenize() -> flask.Response:
        with service.beside:
            asked = read(service, api.DetokenizeRequest)
            service.check_model(asked.model)
            return as_json(answers.Detokenized(prompt=service.model.detokenize(asked.tokens)))

    @app.get("/tokenizer_info")
    def tokenizer_info() -> flask.Response:
        tokenizer = service.model.tokenizer
        known = {"engine": tokenizer.engine, "vocab_size": tokenizer.vocab_size}
        return flask.jsonify({**tokenizer.config, **known})


def _add_ollama(app: flask.Flask, service: Service) -> None:
    @app.get("/api/tags")
    def tags() -> flask.Response:
        return as_json(endpoints.tags(service))

    @app.post("/api/show")
    def show() -> flask.Response:
        return as_json(endpoints.show(service, read(service, ollama.ShowRequest)))

    @app.get("/api/version")
    def version() -> flask.Response:
        return as_json(Version(version=__version__))


def _error_form(path: str, refusal: ApiError) -> pydantic.BaseModel | None:
    """The body of an error as the API of the path has it; None for OpenAI's."""
    if path.startswith(MESSAGES):
        return anthropic_error(refusal)
    return ollama_error(refusal) if path.startswith("/api/") else None


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
