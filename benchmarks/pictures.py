"""Pictures of the server's page for the README, and of the other pages to look at: `make pictures BUNDLE=...`.

The first go into docs/, the others into build/pictures. Needs Chromium; the bundle should be a chat model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from playwright.sync_api import sync_playwright
from serving import CHROMIUM, FLAGS, served

ROOT = Path(__file__).parents[1]
OTHERS = ROOT / "build/pictures"
PROMPT, QUESTION = "Gravity keeps the planets in their orbits because", "Why is the sky blue?"


def _ready(page: Any, text: str) -> None:
    page.wait_for_function("t => document.getElementById('status').textContent.includes(t)", arg=text, timeout=120_000)


def text_view(page: Any) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#max_tokens", "90")
    page.fill("#temperature", "0.3")
    page.fill("#seed", "1")
    page.click("#send")
    _ready(page, "Finished")


def chat_view(page: Any) -> None:
    page.check("#view-chat")
    page.fill("#message", QUESTION)
    page.click("#send")
    _ready(page, "Finished")


def main(bundle: str) -> None:
    OTHERS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, served(Path(bundle).resolve()) as server:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def shot(path: Path, url: str, act: Any, scheme: str, width: int, height: int, whole: bool = False) -> None:
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(url)
            act(page)
            page.screenshot(path=path, full_page=whole)
            page.close()
            print(path.relative_to(ROOT))

        def loaded(page: Any) -> None:
            _ready(page, "Ready.")
            page.wait_for_selector("#receipt-plot", state="visible")

        def then(act: Any) -> Any:
            return lambda page: (loaded(page), act(page))

        shot(ROOT / "docs/page.png", server.url, then(text_view), "light", 1100, 760)
        shot(ROOT / "docs/page-dark.png", server.url, then(chat_view), "dark", 1100, 760)
        shot(ROOT / "docs/page-phone.png", server.url, then(chat_view), "light", 360, 720)
        shot(OTHERS / "page-whole.png", server.url, loaded, "light", 1100, 760, True)
        shot(OTHERS / "page-phone-whole.png", server.url, loaded, "dark", 360, 720, True)
        site = ROOT / "build/site/index.html"
        if site.is_file():
            for name, scheme, width in (("index", "light", 1200), ("commands/kiara-train", "dark", 1200)):
                url = (site.parent / f"{name}.html").as_uri()
                shot(OTHERS / f"site-{Path(name).name}.png", url, lambda page: None, scheme, width, 900)
            shot(
                OTHERS / "site-phone.png",
                (site.parent / "tutorial.html").as_uri(),
                lambda page: None,
                "light",
                360,
                720,
            )
        session = (ROOT / "docs/session.svg").as_uri()
        if (ROOT / "docs/session.svg").is_file():
            for scheme in ("light", "dark"):
                wait = lambda page: page.wait_for_timeout(25_000)  # noqa: E731 - until all lines have appeared
                shot(OTHERS / f"session-{scheme}.png", session, wait, scheme, 840, 900)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
