"""The server's page in a real browser, used as a person would, against the same model in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import CHROMIUM, FLAGS, SLOW, Served, need, renamed, served

from kiara_runtime.loading import load
from kiara_runtime.model import Model

QUOTES = "it's \"so\" \\n $HOME `id` $(id) %s\nline\t'é' 日本 ''' \"\"\" </script> #"
CLIPBOARD: dict[str, Any] = {"permissions": ["clipboard-read", "clipboard-write"]}
ALLOWED_STATUS = "Failed to load resource: the server responded with a status of 400"


@pytest.fixture(scope="module")
def model(chat_bundle: Path) -> Iterator[Model]:
    with load(chat_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def server(chat_bundle: Path) -> Iterator[Served]:
    with served(chat_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need(CHROMIUM is not None, "Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def _page(browser: Any, server: Served, *allowed: str, **options: Any) -> Iterator[Any]:
    """A page that contacts only its server, violates no policy, stores nothing and logs no error except `allowed`."""
    faults: list[str] = []
    asked: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    told = "(e) => console.error('CSP ' + e.violatedDirective + e.blockedURI)"
    page.add_init_script(f"addEventListener('securitypolicyviolation', {told})")
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
    page.goto(server.url)
    _status(page, "Ready.")
    yield page
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie].join()")
    context.close()
    assert kept == "0,0,"
    assert [fault for fault in faults if not any(part in fault for part in allowed)] == []
    assert all(url.startswith(server.url) for url in asked)


def _status(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def _fill(page: Any, **values: object) -> None:
    if page.get_attribute("#sampling", "open") is None:
        page.click("#sampling summary")
    for name, value in values.items():
        page.fill(f"#{name}", str(value))


def _arguments(command: str, environment: dict[str, str] | None = None) -> list[str]:
    """The arguments that a shell would pass to curl."""
    words = "curl() { for each; do printf '%s\\0' \"$each\"; done; }\n" + command
    ran = subprocess.run(["sh", "-c", words], capture_output=True, check=True, env=environment)
    return ran.stdout.decode().split("\0")


def test_the_page_shows_text_receipt_and_model_card(browser: Any, server: Served, model: Model) -> None:
    with _page(browser, server) as page:
        _fill(page, prompt="def é(", max_tokens=20, temperature=0.9, top_k=30, seed=5)
        page.click("#send")
        _status(page, "Finished")
        expected = model.generate("def é(", max_tokens=20, temperature=0.9, top_k=30, seed=5)
        assert page.text_content("#output-prompt") == "def é("
        assert page.text_content("#output-text") == expected.text
        assert page.text_content("#figure-tokens") == str(len(expected.tokens))
        assert page.text_content("#figure-finish") == expected.finish_reason
        page.wait_for_selector("#receipt-plot", state="visible")
        assert page.locator("#receipt-rows tr").count() == 2  # int8 and fp32
        page.click("#card summary")
        assert "int8" in (page.text_content("#model-card") or "")


def test_a_slider_and_its_field_agree(browser: Any, server: Served) -> None:
    with _page(browser, server, viewport={"width": 1100, "height": 800}) as page:
        page.fill("#temperature", "1.25")
        assert page.input_value("#temperature-slider") == "1.25"
        page.focus("#temperature-slider")
        page.keyboard.press("ArrowRight")
        assert page.input_value("#temperature") == page.input_value("#temperature-slider") == "1.3"
        page.fill("#temperature", "-1")
        page.focus("#top_p-slider")
        assert "from 0 to 2" in (page.text_content("#temperature-error") or "")
        page.focus("#temperature-slider")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#temperature-error") == ""


def test_the_receipt_is_a_list_on_a_phone_and_a_table_elsewhere(browser: Any, server: Served) -> None:
    for width, display in ((360, "flex"), (1100, "table-cell")):
        with _page(browser, server, viewport={"width": width, "height": 800}) as page:
            page.wait_for_selector("#receipt", state="visible")
            cell = "document.querySelector('#receipt-rows td')"
            assert page.evaluate(f"getComputedStyle({cell}).display") == display
            assert page.evaluate("document.querySelector('#receipt').scrollWidth") <= width
            assert page.evaluate(f"{cell}.dataset.label") == "size, MB"


def test_one_of_several_models_is_chosen_on_the_page(
    browser: Any, bundle: Path, chat_bundle: Path, tmp_path: Path, model: Model
) -> None:
    renamed(bundle, tmp_path / "plain")
    renamed(chat_bundle, tmp_path / "talker")
    with served(tmp_path, ready=False) as server, _page(browser, server) as page:
        assert page.text_content("#name") == "plain" and not page.is_visible("#views")
        page.select_option("#models", "talker")
        _status(page, "Ready.")
        assert page.text_content("#name") == "talker" and page.is_visible("#views")
        page.wait_for_selector("#receipt-plot", state="visible")
        assert page.locator("#receipt-rows tr").count() == 2
        _fill(page, prompt="def é(", max_tokens=9, temperature=0.9, seed=5)
        page.click("#send")
        _status(page, "Finished")
        expected = model.generate("def é(", max_tokens=9, temperature=0.9, seed=5)
        assert page.text_content("#output-text") == expected.text
        loaded = json.loads(server.get("/v1/models")[1])["data"]
        assert [card["loaded"] for card in loaded] == [False, True]


def test_chat_on_the_page_matches_the_model(browser: Any, server: Served, model: Model) -> None:
    with _page(browser, server) as page:
        page.click("#views label:has(#view-chat)")
        _fill(page, max_tokens=8, temperature=0)
        said: list[dict[str, str]] = []
        for text in ("First <b>bold</b>", "Second"):
            page.fill("#message", text)
            page.click("#send")
            page.wait_for_selector("#conversation[aria-busy=false]")
            page.wait_for_function("n => document.querySelectorAll('#messages li').length > n", arg=len(said))
            _status(page, "Finished")
            said.append({"role": "user", "content": text})
            answer = model.chat(said, max_tokens=8, temperature=0.0).text
            said.append({"role": "assistant", "content": answer})
        assert page.locator("#messages .content").all_text_contents() == [message["content"] for message in said]
        assert page.locator("#messages b").count() == 0
        page.click("#new-conversation")
        assert page.locator("#messages li").count() == 0


def test_stopping_on_the_page_frees_the_slot(browser: Any, chat_bundle: Path) -> None:
    with served(chat_bundle, program=SLOW) as slow, _page(browser, slow) as page:
        for count, stop in ((1, lambda: page.click("#stop-button")), (2, lambda: page.keyboard.press("Escape"))):
            _fill(page, prompt="x", max_tokens=95, seed=1)
            page.keyboard.press("Control+Enter")
            page.wait_for_function("() => document.getElementById('output-text').textContent.length > 5")
            stop()
            _status(page, "Stopped.")
            assert len(page.text_content("#output-text") or "") > 5
            slow.wait_for("kiara_requests_running", 0)
            slow.wait_for("kiara_disconnects_total", count)


def test_errors_appear_beside_their_fields(browser: Any, server: Served) -> None:
    with _page(browser, server, ALLOWED_STATUS) as page:
        sent: list[Any] = []
        page.on("request", lambda request: sent.append(request.post_data_json))
        _fill(page, prompt="x", temperature=3)
        page.click("#send")
        assert "number from 0 to 2" in (page.text_content("#temperature-error") or "")
        _fill(page, prompt="x " * 300, temperature=1)
        page.click("#send")
        _status(page, "Not accepted: prompt.")
        assert "leave no room in the model's context of 96" in (page.text_content("#prompt-error") or "")
        assert [body["temperature"] for body in sent if body is not None] == [1]  # the first was not even sent


def test_the_copied_request_is_the_one_that_was_sent(browser: Any, server: Served) -> None:
    with _page(browser, server, **CLIPBOARD) as page:
        _fill(page, prompt=QUOTES, max_tokens=10, seed=3, top_k=40, stop="zz\n'q")
        page.click("#send")
        _status(page, "Finished")
        shown = page.text_content("#output-text")
        page.click("#copy-python")
        _status(page, "Copied as Python.")
        program = page.evaluate("navigator.clipboard.readText()")
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
        assert ran.stdout == shown
        page.click("#copy-curl")
        _status(page, "Copied as curl.")
        said = _arguments(page.evaluate("navigator.clipboard.readText()"))
        assert said[1] == f"{server.url}/v1/completions"
        assert json.loads(said[-2])["prompt"] == QUOTES


def test_a_copied_request_reads_the_api_key_from_the_environment(
    browser: Any, chat_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("a-long-key\n")
    options = {**CLIPBOARD, "http_credentials": {"username": "any", "password": "a-long-key"}}
    with (
        served(chat_bundle, "--api-key-file", tmp_path / "keys") as keyed,
        _page(browser, keyed, "status of 401", **options) as page,
    ):
        _fill(page, prompt="x", max_tokens=5, seed=1)
        page.click("#send")
        _status(page, "Finished")
        shown = page.text_content("#output-text")
        environment = {**os.environ, "KIARA_API_KEY": "a-long-key"}
        page.click("#copy-python")
        _status(page, "Copied as Python.")
        words = [sys.executable, "-c", page.evaluate("navigator.clipboard.readText()")]
        assert subprocess.run(words, capture_output=True, check=True, text=True, env=environment).stdout == shown
        page.click("#copy-curl")
        _status(page, "Copied as curl.")
        said = _arguments(page.evaluate("navigator.clipboard.readText()"), environment)
        assert said[said.index("Authorization: Bearer a-long-key") - 1] == "-H"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_both_themes(browser: Any, server: Served, scheme: str) -> None:
    size = {"width": 360, "height": 700}
    with _page(browser, server, viewport=size, color_scheme=scheme) as page:
        page.fill("#prompt", "x" * 60)
        page.click("#send")
        _status(page, "Finished")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("[...document.querySelectorAll('input, textarea')].every((e) => e.labels.length > 0)")
