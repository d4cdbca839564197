"""Several models behind one server: loaded on first use, unloaded when idle or when another needs the room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask.testing import FlaskClient
from server_api import CHAT, COMPLETIONS, _client, _ok, _refused
from serving import renamed, served

from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.server.models import Limits
from kiara_runtime.server.service import Service, Settings

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folders(bundle: Path, chat_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bundles in a folder: first, second and talker, which has a chat template."""
    folder = tmp_path_factory.mktemp("models")
    return [
        renamed(bundle, folder / "first"),
        renamed(bundle, folder / "second"),
        renamed(chat_bundle, folder / "talker"),
    ]


class _Loads:
    """Loads bundles, and keeps the names of what it loaded and the most models that were open at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.models: list[Model] = []
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, bundle: Bundle) -> Model:
        model = load(bundle)
        with self.lock:
            self.names.append(bundle.folder.name)
            self.models.append(model)
            self.most = max(self.most, len(_open(self)))
        return model


def _open(loads: _Loads) -> list[Model]:
    return [model for model in loads.models if not model.runner._closed]  # type: ignore[attr-defined]


def _loaded(client: FlaskClient) -> list[str]:
    return [card["id"] for card in client.get("/v1/models").json["data"] if card["loaded"]]  # type: ignore[index]


def test_each_model_is_loaded_on_first_use(folders: list[Path]) -> None:
    loads = _Loads()
    service = Service([Bundle.open(folder) for folder in folders], None, Settings(), loads)
    client = _client(service)
    assert client.get("/ready").json == {"status": "ok"} and _loaded(client) == []
    cards = client.get("/v1/models").json["data"]  # type: ignore[index]
    assert [(card["id"], card["chat"]) for card in cards] == [("first", False), ("second", False), ("talker", True)]
    assert _ok(client, COMPLETIONS, model="second", prompt="x", max_tokens=2)["model"] == "second"
    assert _ok(client, CHAT, model="talker", messages=HELLO, max_tokens=2)["model"] == "talker"
    assert _ok(client, COMPLETIONS, prompt="x", max_tokens=2)["model"] == "first"  # the first is the default
    assert loads.names == ["second", "talker", "first"] and len(_loaded(client)) == 3
    tags = client.get("/api/tags").json["models"]  # type: ignore[index]
    assert [tag["name"] for tag in tags] == ["first:latest", "second:latest", "talker:latest"]
    assert client.get("/bundle/receipt.json?model=second").status_code == 200
    assert client.get("/tokenizer_info?model=talker").json["chat_template"]  # type: ignore[index]
    assert "first, second, talker" in _refused(client, COMPLETIONS, {"prompt": "x", "model": "third"}, 404)["message"]
    service.models.close()


def test_aliases_and_any_model(folders: list[Path]) -> None:
    settings = Settings(aliases={"gpt-4o": "second"}, any_model=True)
    loads = _Loads()
    client = _client(Service([Bundle.open(folder) for folder in folders], None, settings, loads))
    assert _ok(client, COMPLETIONS, model="gpt-4o", prompt="x", max_tokens=1)["model"] == "second"
    assert _ok(client, COMPLETIONS, model="o3", prompt="x", max_tokens=1)["model"] == "first"
    assert _ok(client, "/api/generate", model="second:latest", prompt="x", stream=False)["done"]


def test_no_request_is_lost_while_models_make_room_for_each_other(folders: list[Path]) -> None:
    loads = _Loads()
    service = Service([Bundle.open(f) for f in folders], None, Settings(limits=Limits(max_models=1)), loads)
    names = [folder.name for folder in folders]
    clients = [_client(service) for _ in range(24)]  # not made in threads: Python 3.11's ast.parse fails in them

    def ask(index: int) -> str:
        asked = {"model": names[index % 3], "prompt": "x", "max_tokens": 8, "ignore_eos": True, "seed": 1}
        return str(_ok(clients[index], COMPLETIONS, **asked)["choices"][0]["text"])

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(24)))
    assert len(set(found)) == 1  # all bundles have the same weights
    assert loads.most == 1 and len(loads.names) > 3
    service.models.close()


def test_memory_decides_which_models_stay(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loads = _Loads()
    service = Service([Bundle.open(folder) for folder in folders], None, Settings(limits=Limits(memory=10**9)), loads)
    client, size = _client(service), service.models.entries[0].weights
    room = 2.5 * size
    monkeypatch.setattr("kiara_runtime.server.models.resident", lambda: 10**9 - room + size * len(_open(loads)))
    for name in ("first", "second", "first", "talker"):
        _ok(client, COMPLETIONS, model=name, prompt="x", max_tokens=1)
    assert _loaded(client) == ["first", "talker"]  # the second was the least recently used
    room = 1.5 * size  # as if caches had grown
    service.models.unload_idle()
    assert _loaded(client) == ["talker"]
    room = 0.5 * size  # too little for any, but nothing is left that could go
    _ok(client, COMPLETIONS, model="second", prompt="x", max_tokens=1)
    assert _loaded(client) == ["second"]
    little = Settings(limits=Limits(memory=1000))
    with pytest.raises(UserError, match="--memory: 1000 is too little for first"):
        Service([Bundle.open(folders[0])], None, little, loads)


def test_a_model_that_is_always_in_use_makes_room_for_another(folders: list[Path]) -> None:
    service = Service([Bundle.open(f) for f in folders], None, Settings(limits=Limits(max_models=1)), _Loads())
    over, entered = threading.Event(), threading.Event()

    def keep_using() -> None:  # two of them: at any time the model has a user
        while not over.is_set():
            with service.models.use("first", lambda: None):
                entered.set()
                time.sleep(0.05)

    threads = [threading.Thread(target=keep_using) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.025)
    entered.wait(10)
    with service.models.use("second", lambda: None) as served_model:
        assert served_model.name == "second"
    over.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    service.models.close()


def test_an_idle_model_is_unloaded_and_one_in_use_is_not(folders: list[Path]) -> None:
    loads = _Loads()
    service = Service([Bundle.open(folders[0])], None, Settings(limits=Limits(idle_seconds=60)), loads)
    client, entry = _client(service), service.models.entries[0]
    _ok(client, COMPLETIONS, prompt="x", max_tokens=1)
    with service.models.use("first", lambda: None):
        entry.last_used -= 120  # as if two minutes had passed
        service.models.unload_idle()
        assert _loaded(client) == ["first"]
    service.models.unload_idle()
    assert _loaded(client) == ["first"]  # it was just used
    entry.last_used -= 120
    service.models.unload_idle()
    assert _loaded(client) == [] and client.get("/ready").status_code == 200
    _ok(client, COMPLETIONS, prompt="x", max_tokens=1)
    assert loads.names == ["first", "first"]


def test_a_model_that_cannot_be_loaded_affects_no_other(folders: list[Path]) -> None:
    loads, broken = _Loads(), [True]

    def load_one(bundle: Bundle) -> Model:
        if bundle.folder.name == "second" and broken[0]:
            raise UserError(bundle.folder, "damaged", "copy it again")
        return loads(bundle)

    client = _client(Service([Bundle.open(folder) for folder in folders], None, Settings(), load_one))
    said = _refused(client, COMPLETIONS, {"prompt": "x", "model": "second"}, 500)
    assert (said["param"], said["code"]) == ("model", "model_not_loaded") and "damaged" in said["message"]
    _ok(client, COMPLETIONS, model="first", prompt="x", max_tokens=1)
    broken[0] = False
    _ok(client, COMPLETIONS, model="second", prompt="x", max_tokens=1)


def test_a_request_that_waits_for_room_ends_at_its_deadline(folders: list[Path]) -> None:
    limits = Settings(limits=Limits(max_models=1), timeout=0.5)
    service = Service([Bundle.open(folder) for folder in folders], None, limits, _Loads())
    client = _client(service)
    with service.models.use("first", lambda: None):
        assert _refused(client, COMPLETIONS, {"prompt": "x", "model": "second"}, 504)["code"] == "timeout"
    service.settings.timeout = 60
    _ok(client, COMPLETIONS, model="second", prompt="x", max_tokens=1)


def test_the_command_serves_a_folder_of_bundles(folders: list[Path], kiara_run: Callable[..., Result]) -> None:
    with served(
        folders[0].parent, "--alias", "other=second", "--max-models", 2, "--memory", "1GB", ready=False
    ) as server:
        for name in ("other", "talker"):
            assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1, "model": name})[0] == 200
        assert server.metric("kiara_models_loaded") == 2
    assert "Serving first, second, talker on" in "".join(server.lines)
    wrong: list[tuple[list[Any], str]] = [
        ([folders[0], folders[0]], "first"),
        ([folders[0], "--alias", "x=third"], "--alias x=third"),
        ([folders[0], "--alias", "first=first"], "--alias first=first"),
        ([folders[0], "--alias", "x"], "--alias x"),
        ([folders[0], "--memory", "1kB"], "--memory"),
        ([folders[0].parent.parent / "none"], "none"),
    ]
    for words, where in wrong:
        result = kiara_run("serve", *words)
        assert result.exit_code == 1 and where in result.stderr, result.stderr


def test_a_folder_without_bundles_is_refused(tmp_path: Path, kiara_run: Callable[..., Result]) -> None:
    result = kiara_run("serve", tmp_path)
    assert result.exit_code == 1 and "kiara.json" in result.stderr
