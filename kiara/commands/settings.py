"""Settings of the command line that a command has no use for."""

from __future__ import annotations

import click


def check_prepare(settings: tuple[str, ...]) -> None:
    """Raise UsageError for one that has no effect on `kiara prepare`."""
    for setting in settings:
        section, _, name = setting.partition("=")[0].strip().partition(".")
        length = (section, name) in (("model", "context_length"), ("training", "sequence_length"))  # least text
        if (section in ("model", "training", "adapt") and not length) or (section, name) in (
            ("data", "train"),
            ("data", "prepared_dir"),
        ):
            remedy = "use SOURCE and --out instead" if section == "data" else "pass it to `kiara train`"
            raise click.UsageError(f"--set {setting}: has no effect on `kiara prepare`; {remedy}")
