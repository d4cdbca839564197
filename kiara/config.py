"""The configuration of training: one documented field is schema, YAML key and help text at once.

Values flow defaults -> `.env` -> environment -> YAML file -> `--set`, the later one wins. A value is
never guessed at: an unknown key, a wrong type or an impossible shape raises `UserError` with the key's
path, the value and what would do.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from dotenv.parser import parse_stream
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from kiara_runtime.errors import UserError

ENV_PREFIX = "KIARA_"
MAX_CONFIG_BYTES = 1 << 20
OTHER_VARIABLES = frozenset(("KIARA_API_KEY", "KIARA_BUNDLES"))  # of the examples' programs


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Shape of the model. What is trained has widths of multiples of 64 and heads of 16, as the kernels want them."""

    hidden_size: int = Field(default=256, ge=2, le=1 << 16)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(default=6, ge=1, le=256)
    """Number of blocks."""
    num_attention_heads: int = Field(default=4, ge=1, le=1024)
    """Query heads of a layer."""
    num_key_value_heads: int = Field(default=2, ge=1, le=1024)
    """Key/value heads of a layer; fewer than query heads make the cache smaller."""
    head_dim: int = Field(default=64, ge=2, le=1024, multiple_of=2)
    """Width of one head."""
    intermediate_size: int = Field(default=1024, ge=1, le=1 << 20)
    """Width inside the MLP."""
    context_length: int = Field(default=512, ge=16, le=1 << 20)
    """Tokens the model sees at most, in training and later."""
    rope_theta: float = Field(default=10000.0, gt=1)
    """Base of the rotary position frequencies."""
    norm: Literal["rms", "layer"] = "rms"
    """Root mean square norm, or layer norm with biases."""
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    """Keeps the norm from dividing by zero."""
    position: Literal["rope", "learned"] = "rope"
    """Rotary positions, or a learned table added to the embedding."""
    mlp: Literal["relu2", "swiglu", "gelu"] = "relu2"
    """Squared ReLU, gated SiLU, or GELU in its tanh form."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_out_bias: bool = False
    """A bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases on the MLP's projections."""
    qk_norm: bool = False
    """RMS norm of every query and key head; costs decode speed on a CPU, where nothing fuses it."""
    tie_word_embeddings: bool = True
    """One table for the embedding and the LM head."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_key_value_heads: {self.num_key_value_heads} does not divide "
                f"num_attention_heads ({self.num_attention_heads}); choose a divisor"
            )
        return self


class TokenizerConfig(Section):
    """The byte-level BPE that `kiara prepare` trains."""

    vocab_size: int = Field(default=4096, ge=320, le=1 << 20, multiple_of=64)
    """Entries of the vocabulary: 256 bytes, merges, special tokens."""


class DataConfig(Section):
    """What is trained on and what is held out."""

    train: str = "stdlib"
    """A prepared folder, or a source as `kiara prepare` takes it: a file, a folder, a glob, JSON lines or `stdlib`."""
    val: str | None = None
    """Source of the validation text; null holds out whole documents of the training source."""
    val_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    """Part of the bytes to hold out where `val` is null."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the choice of those documents, apart from `training.seed` so that runs share their validation."""
    text_field: str = "text"
    """Field of a JSON line that holds its text."""
    prepared_dir: str = "data"
    """Folder below which `kiara train` keeps what it prepares by itself."""


class TrainingConfig(Section):
    """The recipe: Muon for the matrices inside the blocks, AdamW for the rest, a long linear decay."""

    max_steps: int = Field(default=800, ge=1)
    """Optimizer steps in all."""
    batch_size: int = Field(default=8, ge=1, le=1 << 16)
    """Sequences a step."""
    learning_rate: float = Field(default=0.008, gt=0, lt=1)
    """Peak learning rate of Muon, for the matrices inside the blocks."""
    embedding_learning_rate: float = Field(default=0.06, gt=0, lt=1)
    """Peak learning rate of AdamW, for the embedding and the norms."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0, lt=1)
    """Decoupled weight decay of the matrices inside the blocks."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    eval_every: int = Field(default=100, ge=1)
    """Steps between two validations."""
    eval_tokens: int = Field(default=32768, ge=1)
    """Validation tokens looked at each time; the end of a run looks at all of them."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints kept; the best one is kept besides."""
    sample_prompt: str = "def "
    """Prompt of the sample that each validation writes."""
    sample_tokens: int = Field(default=64, ge=0)
    """Tokens of that sample; 0 writes none."""
    seed: int = Field(default=1337, ge=0, lt=1 << 63)
    """Seed of the initial weights, the order of the data and the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic inside the model; auto takes bfloat16 where the processor has it. Weights stay float32."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile; auto takes it where a compiler is found and the run is long enough to win its time back."""


class Config(Section):
    """All of it; each section is a key of the YAML file."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _shape_suits_the_kernels(self) -> Config:
        for name, multiple in (("hidden_size", 64), ("intermediate_size", 64), ("head_dim", 16)):
            if (value := getattr(self.model, name)) % multiple:
                raise ValueError(f"model.{name}: {value} will not do: give a multiple of {multiple}")
        width = self.model.num_attention_heads * self.model.head_dim
        if width % 64:
            raise ValueError(f"model.head_dim: num_attention_heads * head_dim is {width}; make it a multiple of 64")
        return self


_SETTINGS = {
    f"{ENV_PREFIX}{section}__{name}".upper(): f"{section}.{name}"
    for section, values in Config()
    for name in type(values).model_fields
}


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 3e-3 as a number, as YAML 1.2 does, and takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(
    path: Path | None = None, assignments: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Merge every layer and validate the result; `model_fields_set` of a section tells what any of them gave.

    assignments: `section.key=value`, the value read as YAML. environ: defaults to `.env` in the working
    folder below the process environment; its keys are `KIARA_SECTION__KEY`.
    """
    merged: dict[str, Any] = {}
    for dotted, value in _environment(environ if environ is not None else _ambient()):
        _assign(merged, dotted, value)
    if path is not None:
        _merge(merged, _read_yaml(path))
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r}: write section.key=value, such as training.max_steps=200")
        _assign(merged, dotted.strip(), _scalar(dotted, text))
    return parse_config(merged)


def parse_config(values: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def is_default(section: Section, name: str) -> bool:
    return getattr(section, name) == type(section).model_fields[name].default


def config_yaml(config: Config) -> str:
    """The configuration as YAML, each key under its documentation."""
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
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it (iconv)") from None
    for binding in bindings:
        if binding.error:
            raise UserError(f"{path}:{binding.original.line}: not a line KEY=value; mend it or put a # before it")
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}


def _environment(environ: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
    for key, text in sorted(environ.items()):
        if key.startswith(ENV_PREFIX) and key not in OTHER_VARIABLES:
            dotted = _SETTINGS.get(key.upper())
            if dotted is None:
                raise UserError(f"{key}: names no setting, in the environment or .env; {_nearest_variable(key)}")
            yield dotted, _scalar(key, text)


def _nearest_variable(key: str) -> str:
    close = difflib.get_close_matches(key.upper(), _SETTINGS, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "take it away; `kiara config` lists every setting"


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--config {path}: there is no such file")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"--config {path}: larger than 1 MiB, which no configuration is")
    try:
        values = _yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise UserError(f"--config {path}: expected sections such as `training:` at the top, found {values!r:.60}")
    return values or {}


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def _scalar(where: str, text: str) -> Any:
    try:
        return _yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(
            f"{where}: {text!r:.60} is not a value that YAML can read; put text with signs in quotes"
        ) from None


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, name = dotted.partition(".")
    if not name:
        raise UserError(f"{dotted}: name a section and a key; {_nearest([dotted])}")
    inner = values.setdefault(section, {})
    if isinstance(inner, dict):
        inner[name] = value


def _merge(values: dict[str, Any], over: Mapping[Any, Any]) -> None:
    for section, inner in over.items():
        if isinstance(inner, dict) and isinstance(values.get(section), dict):
            values[section].update(inner)
        elif inner is not None:  # an empty section (`training:`) changes nothing
            values[section] = inner


def _explain(error: ValidationError) -> str:
    """Every fault in one line: the key's path, what is wrong with it, the remedy."""
    return "; ".join(_explain_one(detail) for detail in error.errors())


def _explain_one(detail: Any) -> str:
    where = [str(part) for part in detail["loc"]]
    path, value, message = ".".join(where), detail["input"], detail["msg"]
    if detail["type"] == "extra_forbidden":
        return f"{path}: there is no such key; {_nearest(where)}"
    if detail["type"] == "value_error":
        return str(message).removeprefix("Value error, ")
    expected = message[0].lower() + message[1:]
    if detail["type"] in ("model_type", "dict_type"):
        expected = f"give keys below it; `kiara config` lists those of {path}"
    return f"{path}: {value!r} will not do: {expected}"


def _nearest(where: list[str]) -> str:
    sections = list(Config.model_fields)
    if len(where) == 1:
        owner = [f"{s}.{where[0]}" for s in sections if where[0] in _section_fields(s)]
        close = owner or difflib.get_close_matches(where[0], sections, n=1, cutoff=0.5)
        return f"did you mean {close[0]}?" if close else f"the sections are {', '.join(sections)}"
    close = difflib.get_close_matches(where[1], _section_fields(where[0]), n=1, cutoff=0.5)
    return f"did you mean {where[0]}.{close[0]}?" if close else f"`kiara config` lists all of {where[0]}"


def _section_fields(section: str) -> list[str]:
    return list(type(getattr(Config(), section)).model_fields)
