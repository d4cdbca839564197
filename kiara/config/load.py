"""Load and print the configuration of training.

Layers, later ones win: defaults, `.env`, environment, YAML file, `--set`. Nothing is guessed: an unknown key, a wrong
type or an impossible shape raises `UserError` with the key's path, the value and a remedy.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv.parser import parse_stream
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from kiara.config.explain import explained, nearest
from kiara.config.model import Section
from kiara.config.presets import presets
from kiara.config.sections import Config
from kiara_runtime.errors import UserError

ENV_PREFIX = "KIARA_"
MAX_CONFIG_BYTES = 1 << 20
OTHER_VARIABLES = frozenset(("KIARA_LOG_LEVEL", "KIARA_API_KEY", "KIARA_BUNDLES"))  # the last two: of examples/

_SETTINGS = {
    f"{ENV_PREFIX}{section}__{name}".upper(): f"{section}.{name}"
    for section, values in Config()
    for name in type(values).model_fields
}


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 3e-3 as a number, as YAML 1.2 does, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(
    path: Path | None = None, assignments: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Merge all layers and validate the result; `model_fields_set` of a section holds the keys that any layer set.

    path: a YAML file, or the name of a preset. assignments: `section.key=value`, the value read as YAML. environ:
    variables named `KIARA_SECTION__KEY`; by default the process environment over `.env` in the working folder.
    """
    merged: dict[str, Any] = {}
    for dotted, value in _environment(environ if environ is not None else _ambient()):
        _assign(merged, dotted, value)
    if path is not None:
        _merge(merged, _read_yaml(_found(path)))
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(
                f"--set {assignment!r}",
                "has no =",
                "write section.key=value, such as training.max_steps=200",
            )
        _assign(merged, dotted.strip(), _scalar(dotted, text))
    return parse_config(merged)


def parse_config(values: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise explained(error) from None


def is_default(section: Section, name: str) -> bool:
    return getattr(section, name) == type(section).model_fields[name].default


def config_yaml(config: Config) -> str:
    """The configuration as YAML, each key below a comment that describes it."""
    lines: list[str] = []
    for section_name in type(config).model_fields:
        section: Section = getattr(config, section_name)
        lines += [f"# {(type(section).__doc__ or '').strip()}", f"{section_name}:"]
        for name, field in type(section).model_fields.items():
            value = yaml.safe_dump(getattr(section, name), width=1000).removesuffix("...\n").strip()
            lines += [f"  # {field.description}{_bounds(field)}", f"  {name}: {value}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _bounds(field: FieldInfo) -> str:
    """The range of a number, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    found = [
        f"{text} {getattr(rule, name)}"
        for rule in field.metadata
        for name, text in words.items()
        if hasattr(rule, name)
    ]
    return f" ({', '.join(found)})" if found else ""


def _ambient() -> dict[str, str]:
    return {**_dotenv(Path(".env")), **os.environ}


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        bindings = list(parse_stream(io.StringIO(path.read_text("utf-8"))))
    except UnicodeDecodeError as error:
        raise UserError(path, f"is not UTF-8 at byte {error.start}", "convert it (iconv)") from None
    for binding in bindings:
        if binding.error:
            raise UserError(
                f"{path}:{binding.original.line}", "is not of the form KEY=value", "fix it or comment it out with #"
            )
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}


def _environment(environ: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
    for key, text in sorted(environ.items()):
        if key.startswith(ENV_PREFIX) and key not in OTHER_VARIABLES:
            dotted = _SETTINGS.get(key.upper())
            if dotted is None:
                raise UserError(key, "is not a setting (from the environment or .env)", _nearest_variable(key))
            yield dotted, _scalar(key, text)


def _nearest_variable(key: str) -> str:
    close = difflib.get_close_matches(key.upper(), _SETTINGS, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "remove it; `kiara config` lists every setting"


def _found(path: Path) -> Path:
    """The file itself, or the preset of that name."""
    if path.is_file():
        return path
    known = presets()
    if str(path) in known:
        return known[str(path)]
    raise UserError(f"--config {path}", "there is no such file or preset", f"name a file or one of {', '.join(known)}")


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(
            f"--config {path}", "is larger than 1 MiB, too large for settings", "name a YAML file of settings"
        )
    try:
        values = _yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path}", f"is not YAML: {' '.join(str(error).split())}", "fix the file") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(
            f"--config {path}", f"holds {values!r:.60} instead of sections", "start with a section such as `training:`"
        )
    return values or {}


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def _scalar(where: str, text: str) -> Any:
    try:
        return _yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(where, "is not valid YAML", "quote text with special characters", value=text) from None


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, name = dotted.partition(".")
    if not name:
        raise UserError(dotted, "is not of the form section.key", nearest([dotted]))
    inner = values.setdefault(section, {})
    if isinstance(inner, dict):
        inner[name] = value


def _merge(values: dict[str, Any], over: Mapping[Any, Any]) -> None:
    for section, inner in over.items():
        if isinstance(inner, dict) and isinstance(values.get(section), dict):
            values[section].update(inner)
        elif inner is not None:  # an empty section (`training:`) changes nothing
            values[section] = inner
