"""The bundle in other runtimes: onnxruntime-genai, transformers.js in Node, and a page in a browser.

Without Node, Chromium or the npm packages these tests are skipped; in CI, which installs them, they fail.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from serving import CHROMIUM, FLAGS, need

from kiara_runtime.loading import load

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples/browser"
NEARLY_EQUAL = {"int8": 0.05, "fp32": 1e-3}  # difference of two log-probabilities, in nats


@pytest.fixture
def npm_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in the folder where `npm install` put transformers.js."""
    need(shutil.which("node") is not None, "Node.js")
    need((EXAMPLE / "node_modules/@huggingface/transformers").is_dir(), "transformers.js (npm install)")
    monkeypatch.chdir(EXAMPLE)


@pytest.mark.slow
def test_one_bundle_gives_the_same_tokens_in_three_runtimes(
    npm_packages: None, run: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    # The graphs have one output more than usual, which the other runtimes must ignore.
    options = ("--quantize", "int8", "--quantize", "int4", "--check-with", "genai,transformersjs", "--embeddings")
    result = kiara("export", run, "--out", tmp_path / "bundle", *options)
    assert result.exit_code == 0, result.stderr
    recorded = json.loads((tmp_path / "bundle/receipt.json").read_text("utf-8"))["runtimes"]
    assert sorted((r["runtime"], r["variant"]) for r in recorded) == [
        (runtime, variant) for runtime in ("onnxruntime-genai", "transformers.js") for variant in ("int4", "int8")
    ]
    assert all(r["identical_for_64_tokens"] == r["prompts"] == 20 and r["version"] for r in recorded)
    assert "onnxruntime-genai" in (tmp_path / "bundle/README.md").read_text("utf-8")


@pytest.mark.slow
def test_a_mismatch_in_another_runtime_warns_and_with_strict_writes_no_bundle(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import kiara_export.proof.other_runtimes as checks

    true_run = checks._run

    def wrong_run(*arguments: Any) -> dict[str, Any]:
        theirs = true_run(*arguments)
        theirs["continuations"][3]["tokens"][5] += 1
        return theirs

    monkeypatch.setattr(checks, "_run", wrong_run)
    told = "onnxruntime-genai generates different greedy tokens for int8 on 1 of 20 prompts, first at token 5"
    options = ("--out", tmp_path / "bundle", "--check-with", "genai")
    strict = kiara("export", run, *options, "--strict")
    assert strict.exit_code == 1 and told in strict.stderr and "no bundle was written" in strict.stderr
    assert not list(tmp_path.iterdir())
    result = kiara("export", run, *options)
    assert result.exit_code == 0 and f"{told}; the bundle is written anyway" in result.stderr
    recorded = json.loads((tmp_path / "bundle/receipt.json").read_text("utf-8"))["runtimes"]
    assert [r["identical_for_64_tokens"] for r in recorded] == [19]


def _serve_module() -> Any:
    spec = spec_from_file_location("serve", EXAMPLE / "serve.py")
    assert spec is not None and spec.loader is not None
    serve = module_from_spec(spec)
    spec.loader.exec_module(serve)
    return serve


@pytest.fixture
def page_url(npm_packages: None, bundle: Path) -> Iterator[str]:
    need(CHROMIUM is not None, "Chromium")
    with _serve_module().make_server(bundle, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("variant", ["int8", "fp32"])
def test_the_browser_page_matches_the_runtime_and_contacts_no_other_server(
    variant: str, page_url: str, bundle: Path
) -> None:
    from playwright.sync_api import sync_playwright

    prompt, asked, errors = "class Reader:\n    def ", [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{page_url}?variant={variant}")
        page.wait_for_selector("#generate:enabled", timeout=60_000)
        page.fill("#prompt", prompt)
        page.fill("#max-tokens", "32")
        page.click("#generate")
        page.wait_for_function("document.getElementById('status').textContent.includes('tokens/s')", timeout=60_000)
        shown = page.text_content("#output")
        browser.close()
    assert shown is not None and _could_be_written(shown, prompt, bundle, variant)
    assert not errors and all(url.startswith((page_url, "blob:", "data:")) for url in asked)


def test_the_browser_page_compares_one_thread_with_all(page_url: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(f"{page_url}?run=one")
        for choice, told in (("one", "1 thread"), ("threads", "thread")):
            page.select_option("#run", choice)
            page.wait_for_url(f"**/?run={choice}")
            page.wait_for_selector("#generate:enabled", timeout=60_000)
            assert page.input_value("#run") == choice and told in str(page.text_content("#facts"))
            page.fill("#max-tokens", "4")
            page.click("#generate")
            page.wait_for_function("document.getElementById('status').textContent.includes('tokens/s')", timeout=60_000)
        rows = [str(row) for row in page.locator("#speeds tr").all_text_contents()]
        assert [row.split(",")[0] for row in rows] == ["int8", "int8"] and "one thread" in rows[0]
        page.goto(f"{page_url}?run=webgpu")  # a browser without it, as in most tests, says so
        page.wait_for_selector("#status:text-matches('Ready|no WebGPU')", timeout=60_000)
        browser.close()


def test_the_browser_page_opens_without_its_server(npm_packages: None, bundle: Path) -> None:
    from playwright.sync_api import sync_playwright

    serve = _serve_module()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        with serve.make_server(bundle, 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_selector("#generate:enabled", timeout=60_000)
            manifest = page.evaluate("fetch('app.webmanifest').then((response) => response.json())")
            assert manifest["display"] == "standalone"
            server.shutdown()
        page.reload()
        page.wait_for_selector("#generate:enabled", timeout=60_000)
        page.fill("#max-tokens", "4")
        page.click("#generate")
        page.wait_for_function("document.getElementById('status').textContent.includes('tokens/s')", timeout=60_000)
        browser.close()


def _could_be_written(shown: str, prompt: str, bundle: Path, variant: str) -> bool:
    """Whether the runtime writes the same, up to a place where its two likeliest tokens are nearly equal.

    Other kernels round int8's activations in another way and can choose the other one there.
    """
    model = load(bundle, variant)
    found = model.generate(prompt, max_tokens=32, temperature=0.0, token_healing=False, logprobs=2)
    for i, token in enumerate(found.logprobs[: len(found.tokens)]):
        written = model.tokenizer.decode(found.tokens[: i + 1]).rstrip("\ufffd")  # may end within a character
        if not shown.startswith(prompt + written):
            (_, first), (_, second) = token.top
            return first - second < NEARLY_EQUAL[variant]
    return shown == prompt + found.text


def test_the_example_server_serves_no_other_files(page_url: str, bundle: Path) -> None:
    import http.client

    (bundle.parent / "secret.txt").write_text("secret", "utf-8")

    def status(path: str) -> int:
        connection = http.client.HTTPConnection(page_url.split("/")[2], timeout=10)  # does not normalise the path
        connection.request("GET", path)
        return connection.getresponse().status

    assert status("/") == status("/models/bundle/kiara.json") == status("/models/bundle/./kiara.json") == 200
    for path in (
        "/models/bundle/../secret.txt", "/models/bundle/%2e%2e/secret.txt", "/models/bundle/onnx/../../secret.txt",
        f"/models/bundle/{bundle.parent}/secret.txt", f"/models/bundle//{bundle.parent}/secret.txt", "/serve.py",
        "/vendor/", "/package.json", "/models/bundle/%00", "/models/bundle/" + "x" * 300, "/models/bundle/onnx",
    ):  # fmt: skip
        assert status(path) == 404, path


def test_the_browser_example_reports_a_missing_bundle(tmp_path: Path) -> None:
    import subprocess

    done = subprocess.run([sys.executable, EXAMPLE / "serve.py", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no bundle" in done.stderr and "Traceback" not in done.stderr
