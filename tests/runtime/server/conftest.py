"""Fixtures of the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from server_api import _client, _service

from kiara_runtime.loading import load
from kiara_runtime.model import Model


@pytest.fixture(scope="module")
def model(chat_bundle: Path) -> Iterator[Model]:
    with load(chat_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def client(chat_bundle: Path, model: Model) -> FlaskClient:
    return _client(_service(chat_bundle, model))
