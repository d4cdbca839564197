"""Write the help text of every command into its page in docs/commands: `python docs/site/help_texts.py`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from kiara.commands.main import main as kiara
from kiara_runtime.commands.main import main as kiara_run

PAGES = Path(__file__).parents[1] / "commands"
PROGRAMS = {"kiara": kiara, "kiara-run": kiara_run}
BLOCK = re.compile(r"(## Options\n\n```text\n).*?(```\n)", re.DOTALL)
WIDTH = 110


def filled(page: str, help_text: str) -> str:
    """The page with its block of options replaced."""
    return BLOCK.sub(lambda found: found[1] + help_text.rstrip() + "\n" + found[2], page)


def help_texts() -> dict[Path, str]:
    """The help text of each command, by the page that it belongs to."""
    found: dict[Path, str] = {}
    for program, group in PROGRAMS.items():
        parent = click.Context(group, info_name=program, **group.context_settings)
        for name in group.list_commands(parent):
            command = group.get_command(parent, name)
            assert command is not None
            context = click.Context(
                command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH, color=False
            )
            found[PAGES / f"{program}-{name}.md"] = command.get_help(context)
    return found


def main() -> None:
    for path, text in help_texts().items():
        path.write_text(filled(path.read_text("utf-8"), text), "utf-8")


if __name__ == "__main__":
    main()
