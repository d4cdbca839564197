"""The documents: links, commands, options, settings, messages and the site; both packages carry the licence."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import click
import pytest
from conftest import REPOSITORY
from serving import CHROMIUM, FLAGS, need

from kiara.config.load import load_config
from kiara_runtime.errors import UserError

LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?: {4})?(?:\S+/bin/|\S+ -m )?((?:kiara|kiara-run) [a-z].*)$", re.MULTILINE)
SITE = REPOSITORY / "docs/site"


def _documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listed.stdout.splitlines()]


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _anchors(document: Path) -> set[str]:
    """Names of the headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", _documents(), ids=_name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _module(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _programs() -> dict[str, click.Group]:
    return _module(SITE / "help_texts.py").PROGRAMS


def _words(command: str) -> list[str]:
    """The words of a command of the shell, up to a comment, a pipe or the next command."""
    words = shlex.split(command.replace("...", "").replace(";", " ;"), comments=True)
    ends = [i for i, word in enumerate(words) if word in ("|", "<", ">", "&&", "||", ";")]
    return words[: min(ends)] if ends else words


@pytest.mark.parametrize("document", _documents(), ids=_name)
def test_commands_and_their_options_and_settings_exist(document: Path) -> None:
    for line in COMMAND.findall(document.read_text("utf-8")):
        program, name, *words = _words(line)
        if name.startswith("-"):
            continue
        group = _programs()[program]
        parent = click.Context(group, info_name=program, **group.context_settings)
        command = group.get_command(parent, name)
        assert command is not None, line
        context = click.Context(command, parent=parent, info_name=name)
        try:
            command.make_parser(context).parse_args(list(words))
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")
        for option, value in pairwise(words):
            if option == "--set" and "=" in value:
                try:
                    load_config(assignments=(value,), environ={})
                except UserError as error:
                    assert "no such key" not in str(error), f"{line}: {error}"


def test_the_pages_of_the_commands_have_their_help() -> None:
    module = _module(SITE / "help_texts.py")
    texts = module.help_texts()
    assert set(texts) == set((REPOSITORY / "docs/commands").glob("*.md"))
    for path, text in texts.items():
        page = path.read_text("utf-8")
        assert module.filled(page, text) == page, f"{path.name} is old: python docs/site/help_texts.py"
        assert text in page


def test_the_messages_of_the_troubleshooting_page_are_in_the_code() -> None:
    page = (REPOSITORY / "docs/troubleshooting.md").read_text("utf-8")
    fragments = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    sources = "".join(
        path.read_text("utf-8")
        for folder in ("kiara", "export", "runtime/kiara_runtime")
        for path in (REPOSITORY / folder).rglob("*.py")
    )
    plain = re.sub(r"\{[^{}]*\}", "{}", re.sub(r'"\s*\n\s*f?"', "", sources))  # names of values do not matter
    assert len(fragments) > 20
    assert [fragment for fragment in fragments if fragment not in plain] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/api.html").read_text("utf-8")
    assert "max_tokens" in page and "Raises" in page
    _search_from_disk(tmp_path / "site/index.html")


def _search_from_disk(index: Path) -> None:
    """The search needs neither a server nor a network."""
    need(CHROMIUM is not None, "Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(index.as_uri())
        page.click(".md-search__input")
        page.type(".md-search__input", "speculate")
        page.wait_for_selector(".md-search-result__item", timeout=30_000)
        assert "The server" in page.inner_text(".md-search-result__list")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "blob:", "about:"))] == []


def test_both_packages_carry_the_licence() -> None:
    assert (REPOSITORY / "runtime/LICENSE").read_text("utf-8") == (REPOSITORY / "LICENSE").read_text("utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    from importlib.metadata import version

    import kiara_runtime

    cited = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert cited and cited[1] == kiara_runtime.__version__ == version("kiara-slm") == version("kiara-runtime")
