"""The routes, each a few lines over `service`. Errors, headers, log and metrics are handled in one place."""

from __future__ import annotations

import uuid
from importlib.resources import files

import flask
import pydantic
from werkzeug.exceptions import HTTPException

from kiara_runtime import __version__
from kiara_runtime.server.anthropic.messages import error_body as anthropic_error
from kiara_runtime.server.anthropic.requests import CountRequest, MessagesRequest
from kiara_runtime.server.anthropic.responses import TokenCount
from kiara_runtime.server.generation import answer, as_json, defect, read, use
from kiara_runtime.server.guard import ApiError, as_api_error
from kiara_runtime.server.models import SHOWN
from kiara_runtime.server.ollama import embeddings as ollama_vectors
from kiara_runtime.server.ollama import endpoints
from kiara_runtime.server.ollama import requests as ollama
from kiara_runtime.server.ollama.chat import error_body as ollama_error
from kiara_runtime.server.ollama.embeddings import EmbedRequest, OneRequest
from kiara_runtime.server.ollama.objects import Version
from kiara_runtime.server.openai import requests as api
from kiara_runtime.server.openai import responses as answers
from kiara_runtime.server.openai.embeddings import EmbeddingRequest, embed
from kiara_runtime.server.openapi import document
from kiara_runtime.server.records import Record, request_id
from kiara_runtime.server.responses.objects import Deleted
from kiara_runtime.server.responses.requests import ResponsesRequest
from kiara_runtime.server.served import ServedModel, named
from kiara_runtime.server.service import Service

MESSAGES = "/v1/messages"
PAGE = dict.fromkeys(
    ("page.js", "client.js", "elements.js", "model.js", "sliders.js", "snippets.js"), "text/javascript"
) | {
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
    _add_page(app, service.settings.root_path)
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
        given = request_id(request.headers.get("X-Request-Id"))
        flask.g.record = Record(uuid.uuid4().hex, request.method, route, given=given)
        flask.g.record.traceparent = request.headers.get("traceparent")
        if service.settings.trusted_proxy:
            flask.g.record.details["client"] = request.remote_addr
        return service.guard.check(request)

    def after(response: flask.Response) -> flask.Response:
        record: Record = flask.g.record
        record.status = record.status or response.status_code
        response.headers["X-Request-Id"] = record.shown_id
        response.headers.update(service.guard.headers(flask.request.headers.get("Origin")))
        response.call_on_close(lambda: record.end(service.metrics, service.log, service.trace))
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
        return answer(service, api.CompletionRequest, ServedModel.complete)

    @app.post("/v1/chat/completions")
    def chat_completions() -> flask.Response:
        return answer(service, api.ChatRequest, ServedModel.chat)

    @app.post("/v1/responses")
    def respond() -> flask.Response:
        return answer(service, ResponsesRequest, ServedModel.respond)

    @app.post(MESSAGES)
    def messages() -> flask.Response:
        return answer(service, MessagesRequest, ServedModel.messages)

    @app.post("/api/chat")
    def ollama_chat() -> flask.Response:
        return answer(service, ollama.OllamaChatRequest, endpoints.chat)

    @app.post("/api/generate")
    def ollama_generate() -> flask.Response:
        return answer(service, ollama.GenerateRequest, endpoints.generate)

    @app.post("/v1/embeddings")
    def embeddings() -> flask.Response:
        return answer(service, EmbeddingRequest, embed)

    @app.post("/api/embed")
    def ollama_embed() -> flask.Response:
        return answer(service, EmbedRequest, ollama_vectors.embed)

    @app.post("/api/embeddings")
    def ollama_embedding() -> flask.Response:
        return answer(service, OneRequest, ollama_vectors.embed_one)

    @app.post(f"{MESSAGES}/count_tokens")
    def count_tokens() -> flask.Response:
        asked = read(service, CountRequest)
        with service.beside, use(service, asked.model) as served:
            return as_json(TokenCount(input_tokens=served.count(asked)))


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
        return as_json(answers.ModelList(data=[entry.card() for entry in service.models.entries]))

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> flask.Response:
        return as_json(service.models.find(name).card())

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
        return flask.jsonify(
            document(
                [entry.card() for entry in service.models.entries], bool(service.guard.keys), flask.request.root_path
            )
        )

    @app.get("/bundle/<name>")
    def bundle_file(name: str) -> flask.Response:
        entry = service.models.find(flask.request.args.get("model"))
        return flask.Response(entry.file(name), content_type=SHOWN[name])


def _add_tokens(app: flask.Flask, service: Service) -> None:
    @app.post("/tokenize")
    def tokenize() -> flask.Response:
        asked = read(service, api.TokenizeRequest)
        with service.beside, named("prompt"), use(service, asked.model) as served:
            model = served.model
            plain = asked.add_special_tokens is False
            ids = model.tokenize(asked.prompt) if plain else model.encode_prompt(asked.prompt)
            texts = [served.texts.text(token) for token in ids] if asked.return_token_strs else None
        return as_json(
            answers.Tokenized(tokens=ids, count=len(ids), max_model_len=model.context_length, token_strs=texts)
        )

    @app.post("/detokenize")
    def detokenize() -> flask.Response:
        asked = read(service, api.DetokenizeRequest)
        with service.beside, use(service, asked.model) as served:
            return as_json(answers.Detokenized(prompt=served.model.detokenize(asked.tokens)))

    @app.get("/tokenizer_info")
    def tokenizer_info() -> flask.Response:
        with use(service, flask.request.args.get("model")) as served:
            tokenizer = served.model.tokenizer
            known = {"engine": tokenizer.engine, "vocab_size": tokenizer.vocab_size}
            return flask.jsonify({**tokenizer.config, **known})


def _add_ollama(app: flask.Flask, service: Service) -> None:
    @app.get("/api/tags")
    def tags() -> flask.Response:
        return as_json(endpoints.tags(service.models.entries))

    @app.get("/api/ps")
    def running() -> flask.Response:
        return as_json(endpoints.tags(service.models.loaded()))

    @app.post("/api/show")
    def show() -> flask.Response:
        asked = read(service, ollama.ShowRequest)
        entry = service.models.find(asked.model)
        with use(service, asked.model) as served:
            return as_json(endpoints.show(entry, served))

    @app.get("/api/version")
    def version() -> flask.Response:
        return as_json(Version(version=__version__))


def _error_form(path: str, refusal: ApiError) -> pydantic.BaseModel | None:
    """The body of an error as the API of the path has it; None for OpenAI's."""
    if path.startswith(MESSAGES):
        return anthropic_error(refusal)
    return ollama_error(refusal) if path.startswith("/api/") else None


def _add_page(app: flask.Flask, root_path: str) -> None:
    folder = files("kiara_runtime.server") / "page"

    contents = {name: (folder / name).read_bytes() for name in PAGE}

    def shown(name: str) -> flask.Response:
        if root_path and flask.request.environ.get("REQUEST_URI") == root_path:
            return flask.Response(status=308, headers={"Location": f"{root_path}/"})  # the page's links are relative
        return flask.Response(contents[name], mimetype=PAGE[name])

    @app.get("/favicon.ico")
    def no_icon() -> flask.Response:
        return flask.Response(status=204)  # browsers request it automatically

    for name in PAGE:
        path = "" if name == "index.html" else name
        app.add_url_rule(f"/{path}", name, shown, defaults={"name": name})
