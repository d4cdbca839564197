"""Tells PyInstaller what it cannot see: the modules that are imported by name, and the server's page."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Folders with hooks, for PyInstaller's entry point `hook-dirs`."""
    return [str(Path(__file__).parent)]
