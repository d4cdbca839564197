"""Presets: configurations that come with Kiara, used by name (`--config small`)."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# In a wheel they lie in the package; in a checkout they are the repository's configs/.
FOLDER = next(place for place in (_PACKAGE / "presets", _PACKAGE.parent / "configs") if place.is_dir())


def presets() -> dict[str, Path]:
    """Each preset's file, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
