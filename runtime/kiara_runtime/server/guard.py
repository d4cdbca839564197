"""Keys, hosts and origins; errors as HTTP responses in OpenAI's format; security headers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import flask
import pydantic
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from kiara_runtime.errors import BusyError, ClosedError, ContextError, UserError
from kiara_runtime.server.openai.responses import Error, ErrorDetail

MAX_MESSAGE, MAX_PARAM = 400, 100  # characters: an answer stays below 4 KB however they are escaped
OPEN = "/health"  # paths that need no key
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Names of request fields that differ from those of the runtime.
_PLACES = {
    "json_schema": "response_format.json_schema.schema",
    "regex": "response_format.regex",
    "grammar": "response_format.grammar",
    "chat": "messages",
}


class ApiError(Exception):
    """An error response in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def reason(self) -> str:
        """The reason for the log, without any text of the client."""
        return self.code or HTTPStatus(self.status).phrase.lower().replace(" ", "_")

    @property
    def body(self) -> Error:
        kind = _KINDS.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        message, param = str(self)[:MAX_MESSAGE], self.param and self.param[:MAX_PARAM]
        return Error(error=ErrorDetail(message=message, type=kind, param=param, code=self.code))

    def response(self, body: pydantic.BaseModel | None = None) -> flask.Response:
        """body: in another API's form."""
        told = (body or self.body).model_dump_json()
        return flask.Response(told, self.status, self.headers, mimetype="application/json")


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
TOO_LARGE = ApiError(413, "body: larger than the server's --max-body allows; send less", code="body_too_large")


def stopping() -> ApiError:
    return ApiError(503, "the server is stopping", code="shutting_down", headers={"Retry-After": "1"})


def queue_full(message: str) -> ApiError:
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


def as_api_error(error: Exception) -> ApiError | None:
    """The response for an exception; None if it is a bug of the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClosedError):
        return stopping()
    if isinstance(error, BusyError):
        return queue_full(str(error))
    if isinstance(error, UserError):
        code = "context_length_exceeded" if isinstance(error, ContextError) else None
        place = _PLACES.get(error.name, error.name)  # as the request spells it
        name = place.partition(".")[0]
        told = error.renamed(place + error.field.removeprefix(error.name))
        return ApiError(400, str(told), name if name.isidentifier() else None, code)
    if isinstance(error, pydantic.ValidationError):
        return _refused_field(error)
    if isinstance(error, RequestEntityTooLarge):
        return TOO_LARGE
    if isinstance(error, (NotFound, MethodNotAllowed)):
        return _no_route(error)
    if isinstance(error, HTTPException):
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        said = (error.description or error.name).partition(". ")[0]
        return ApiError(error.code or 500, said, code=error.name.lower().replace(" ", "_"), headers=headers)
    return None


def _no_route(error: NotFound | MethodNotAllowed) -> ApiError:
    """Name the path that was requested, and those that exist."""
    request, rules = flask.request, flask.current_app.url_map.iter_rules()
    ways = {rule.rule: sorted((rule.methods or set[str]()) - {"HEAD", "OPTIONS"}) for rule in rules}
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(error.valid_methods or ())
        said = f"{request.method} {request.path:.80}: not this method; use {allowed}"
        return ApiError(405, said, code="method_not_allowed", headers={"Allow": allowed})
    known = ", ".join(f"{way[0]} {path}" for path, way in ways.items() if path.startswith("/v1/") and "<" not in path)
    return ApiError(404, f"{request.path:.80}: there is no such path; the API has {known}", code="not_found")


def _refused_field(error: pydantic.ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    whole = [part for part in first["loc"] if not (isinstance(part, str) and re.search(r"[\[\]()]", part))]
    # Pydantic puts the name of a variant into the path, after the name of its field.
    path = [
        part for part, before in zip(whole, [None, *whole], strict=False) if part != before or isinstance(part, int)
    ]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "body"
    name = str(path[0]) if path else "body"
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{where}: is unknown to this server; remove it", name, "unknown_parameter")
    if first["type"] == "unsupported":
        return ApiError(400, f"{where}: is not supported by this server; remove it", name, "unsupported_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{where}: is required but missing; add it", name, "missing_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"body: {first['msg']}", code="invalid_json")
    shown = " ".join(repr(first["input"]).split())
    return ApiError(400, f"{where}: {shown:.80} is invalid; {first['msg']}", name, "invalid_value")


@dataclass(frozen=True)
class Guard:
    """keys: if there are any, a client must send one. hosts: names allowed in the Host header, in addition to addresses
    and localhost, which a foreign page cannot resolve to this server. origins: whose pages may call the API."""

    keys: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    _digests: list[bytes] = field(init=False, default_factory=list[bytes])

    def __post_init__(self) -> None:
        self._digests.extend(_digest(key) for key in self.keys)

    def check(self, request: flask.Request) -> flask.Response | None:
        """Check a request. Returns the answer to an allowed preflight request, None for other allowed requests.

        Raises ApiError if the request is not allowed.
        """
        name = request.environ.get("HTTP_HOST")
        if name is not None and not self._is_own(name):  # every browser sends one
            raise ApiError(403, f"Host: {name:.80} is not a name of this server; --allow-host adds one", code="host")
        if request.method == "OPTIONS" and request.headers.get("Origin") in self.origins:
            return _preflight(request)
        if self._digests and request.path != OPEN and not self._knows(request):
            # A browser opens a password dialog for Basic, so only the page asks for it.
            shown = 'Basic realm="kiara", charset="UTF-8"' if request.path == "/" else 'Bearer realm="kiara"'
            said = "Authorization: give a key of this server as a bearer token"
            raise ApiError(401, said, None, "invalid_api_key", {"WWW-Authenticate": shown})
        if request.method == "POST" and request.url_rule:
            _check_kind(request)
        return None

    def headers(self, origin: str | None) -> dict[str, str]:
        """Headers of every response to a page of `origin`."""
        if origin is None or origin not in self.origins:
            return HEADERS
        return {
            **HEADERS,
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "X-Request-Id, Retry-After",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Vary": "Origin",
        }

    def _is_own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
        return name == "localhost" or name in self.hosts or _is_address(name)

    def _knows(self, request: flask.Request) -> bool:
        kind, _, key = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() == "basic":
            key = (request.authorization.password if request.authorization else None) or ""
        elif kind.lower() != "bearer":
            key = request.headers.get("X-Api-Key", "")  # Anthropic's clients
        found = _digest(key.strip())
        return (
            sum(hmac.compare_digest(found, digest) for digest in self._digests) > 0
        )  # compares with all keys, in constant time


def _preflight(request: flask.Request) -> flask.Response:
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "")[:1000],
        "Access-Control-Max-Age": "600",
    }
    return flask.Response(status=204, headers=allowed)


def _check_kind(request: flask.Request) -> None:
    """Require JSON: a foreign page could send other types without a preflight request."""
    if request.mimetype != "application/json":
        raise ApiError(415, f"Content-Type: {request.mimetype!r:.60} cannot be used; send application/json")
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise ApiError(415, f"Content-Encoding: {coding!r:.60} cannot be used; send the body as it is")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def read_keys(lines: Iterable[str]) -> frozenset[str]:
    """Read keys, one per line; empty lines and comments (#) are skipped. Raises UserError for an invalid key."""
    keys = {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}
    if any(len(key) < 8 for key in keys):
        raise UserError("api key", "has less than 8 characters", "use a longer one")
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise UserError("api key", "has a space or a non-ASCII character", "use another")
    return frozenset(keys)
