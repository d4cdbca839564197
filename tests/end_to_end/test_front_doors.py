"""A room is used through its front door: other rooms import from the room, not from a module inside it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {
    "kiara_runtime": REPOSITORY / "runtime" / "kiara_runtime",
    "kiara": REPOSITORY / "kiara",
    "kiara_export": REPOSITORY / "export" / "kiara_export",
}
ROOMS = sorted(
    f"{package}.{door.parent.name}" for package, folder in PACKAGES.items() for door in folder.glob("*/__init__.py")
)


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _imports(package: str) -> Iterator[tuple[str, str, str]]:
    """Yield (importing module, imported module, name) of every import between modules of the three packages."""
    for path in PACKAGES[package].rglob("*.py"):
        importer = ".".join((package, *path.relative_to(PACKAGES[package]).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                yield from ((importer, node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_is_imported_through_its_front_door(package: str) -> None:
    past_the_door = [
        f"{importer}: from {module} import {name}"
        for importer, module, name in _imports(package)
        if _room(module) in ROOMS
        and _room(module) != _room(importer)
        and module != _room(module)
        and ".commands" not in module  # commands are loaded one by one, to answer `--help` at once
    ]
    assert past_the_door == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_front_door_offers_exactly_what_other_rooms_use(room: str) -> None:
    door = import_module(room)
    assert door.__doc__
    imports = [found for package in PACKAGES for found in _imports(package)]
    used = {name for importer, module, name in imports if module == room and _room(importer) != room}
    assert set(getattr(door, "__all__", [])) == used
    for name in used:
        assert getattr(door, name) is not None
