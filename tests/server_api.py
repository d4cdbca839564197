"""Helpers shared by the server tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.model import Model
from kiara_runtime.server.routes import create_app
from kiara_runtime.server.service import Service, Settings

PROMPT = "def main(argv):\n    for"


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class _Client(FlaskClient):
    """Closes every response, as a WSGI server does."""

    def open(self, *arguments: Any, **options: Any) -> Any:
        return super().open(*arguments, **{"buffered": True, **options})


def _client(service: Service) -> FlaskClient:
    app = create_app(service)
    app.test_client_class = _Client
    return app.test_client()


def _service(folder: Path, model: Model, **options: Any) -> Service:
    service = Service([Bundle.open(folder)], None, Settings(**options), lambda bundle: model)
    service.models.load_first()
    return service


def _ok(client: FlaskClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json


def _events(client: FlaskClient, path: str, **body: Any) -> list[Any]:
    """The chunks of a stream; checks its format and its end."""
    response = client.post(path, json={**body, "stream": True})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    *events, done, rest = re.sub(r"^:.*\n\n", "", response.text, flags=re.MULTILINE).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _refused(client: FlaskClient, path: str, body: Any, status: int = 400) -> Any:
    given = {"data": body, "content_type": "application/json"} if isinstance(body, bytes) else {"json": body}
    response = client.post(path, **given)
    assert response.status_code == status, response.text
    assert len(response.data) <= 4096
    error = response.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def _text(found: Any) -> str:
    choice = found["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]
