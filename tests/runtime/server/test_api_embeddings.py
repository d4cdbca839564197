"""/v1/embeddings and Ollama's endpoints, compared with the model itself."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from server_api import _client, _ok, _refused, _service

from kiara_runtime.loading import load
from kiara_runtime.model import Model

PATH, TEXTS = "/v1/embeddings", ["import os", "a much longer text, with commas", "x"]


@pytest.fixture(scope="module")
def embedder(embedding_bundle: Path) -> Iterator[Model]:
    with load(embedding_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def client(embedding_bundle: Path, embedder: Model) -> FlaskClient:
    return _client(_service(embedding_bundle, embedder))


def test_texts_ids_and_both_encodings_give_the_models_vectors(client: FlaskClient, embedder: Model) -> None:
    expected, ids = embedder.embed(TEXTS), [embedder.encode_prompt(text) for text in TEXTS]
    for given in (TEXTS, ids):
        found = _ok(client, PATH, input=given, model="embedder")
        assert [one["index"] for one in found["data"]] == [0, 1, 2] and found["object"] == "list"
        vectors = np.array([one["embedding"] for one in found["data"]], dtype=np.float32)
        assert (vectors == expected).all()
        assert found["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    for given in (TEXTS[0], ids[0]):
        found = _ok(client, PATH, input=given, encoding_format="base64")
        assert (np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4") == expected[0]).all()


def test_pooling_and_dimensions(client: FlaskClient, embedder: Model) -> None:
    found = _ok(client, PATH, input="x y z", pooling="last", dimensions=8)["data"][0]["embedding"]
    assert (np.array(found, dtype=np.float32) == embedder.embed(["x y z"], "last", 8)[0]).all()


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x", "y " * 200]}, "input[1]"),
        ({"input": "x", "dimensions": 65}, "dimensions"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": [99999]}, "prompt"),
        ({"input": "x", "stream": True}, "stream"),
    ],
)
def test_bad_requests_name_the_field(client: FlaskClient, body: Any, where: str) -> None:
    assert where in _refused(client, PATH, body)["message"]


def test_a_bundle_without_embeddings_says_how_to_get_them(chat_bundle: Path) -> None:
    with load(chat_bundle) as model:
        said = _refused(_client(_service(chat_bundle, model)), PATH, {"input": "x"})["message"]
    assert "kiara export --embeddings" in said


def test_ollamas_endpoints(client: FlaskClient, embedder: Model) -> None:
    expected = embedder.embed(TEXTS)
    found = _ok(client, "/api/embed", model="embedder:latest", input=TEXTS, keep_alive="5m", options={"num_ctx": 8})
    assert (np.array(found["embeddings"], dtype=np.float32) == expected).all()
    assert found["model"] == "embedder:latest" and found["prompt_eval_count"] > 0
    found = _ok(client, "/api/embeddings", model="embedder", prompt=TEXTS[0])
    assert (np.array(found["embedding"], dtype=np.float32) == expected[0]).all()
    long = "y " * 200
    cut = embedder.embed([embedder.encode_prompt(long)[: embedder.context_length - 1]])
    found = _ok(client, "/api/embed", model="embedder", input=long)
    assert (np.array(found["embeddings"], dtype=np.float32) == cut).all()
    response = client.post("/api/embed", json={"model": "embedder", "input": long, "truncate": False})
    assert response.status_code == 400 and "input" in response.json["error"]  # type: ignore[index]
    assert "embedding" in _ok(client, "/api/show", model="embedder")["capabilities"]
