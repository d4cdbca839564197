"""The level of the log: probes are not logged, refusals are warnings, and the environment sets the least level."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from conftest import REPOSITORY
from server_api import COMPLETIONS, _client, _service

from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.system.log_level import log_level


def _levels(chat_bundle: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, int]]:
    client = _client(_service(chat_bundle, model))
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        assert client.get(path).status_code == 200
    client.post(COMPLETIONS, json={"prompt": "secret words", "max_tokens": 1})
    client.post(COMPLETIONS, json={"prompt": "secret words", "no_such_field": 1})
    written = capsys.readouterr().err
    assert "secret" not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert all(line["id"] for line in lines)
    return [(line["level"], line["status"]) for line in lines]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", [("debug", 200)] * 3 + [("info", 200), ("info", 200), ("warning", 400)]),
        (None, [("info", 200), ("info", 200), ("warning", 400)]),
        ("WARNING", [("warning", 400)]),
        ("error", []),
    ],
)
def test_levels(
    level: str | None,
    expected: list[tuple[str, int]],
    chat_bundle: Path,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if level:
        monkeypatch.setenv("KIARA_LOG_LEVEL", level)
    assert _levels(chat_bundle, model, capsys) == expected


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]) -> None:
    with pytest.raises(UserError, match="KIARA_LOG_LEVEL: 'loud' is not a level; use one of debug"):
        log_level({"KIARA_LOG_LEVEL": "loud"})
    monkeypatch.setenv("KIARA_LOG_LEVEL", "loud")
    result = kiara("evaluate", "nothing")
    assert result.exit_code == 1 and "KIARA_LOG_LEVEL" in result.stderr and "Traceback" not in result.stderr


def test_the_dashboard_shows_metrics_that_exist(chat_bundle: Path, model: Model) -> None:
    client = _client(_service(chat_bundle, model))
    client.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 3})
    served = set(re.findall(r"^(kiara_\w+)[ {]", client.get("/metrics").text, re.MULTILINE))
    dashboard = json.loads((REPOSITORY / "examples/deploy/grafana.json").read_text("utf-8"))
    asked = {name for panel in dashboard["panels"] for t in panel["targets"] for name in _names(t["expr"])}
    assert len(asked) >= 9 and asked <= served


def _names(expression: str) -> list[str]:
    return re.findall(r"kiara_\w+", expression)
