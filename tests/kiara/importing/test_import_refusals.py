"""What an import refuses, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from families import CHAT, make_folder, make_tokenizer
from safetensors.torch import load_file, save_file

from kiara.data.token_ids import TokenIds
from kiara.importing.importer import import_model
from kiara.importing.tokenizers import settle_tokenizer
from kiara_export.pipeline import Request, export
from kiara_runtime.loading import load
from kiara_runtime.tokens.chat import can_chat
from kiara_runtime.tokens.tokenizer import Tokenizer


def test_several_end_of_text_ids_reach_the_bundle(llama: Path, corpus: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "llama"))
    _edit(folder / "generation_config.json", eos_token_id=[498, 500], bos_token_id=498)
    import_model(folder, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "bundle", Request(("fp32",), text=str(corpus / "bisect.py")))
    assert load(tmp_path / "bundle").eos_token_ids == {498, 500}
    assert json.loads((tmp_path / "bundle/generation_config.json").read_text("utf-8"))["eos_token_id"] == [498, 500]


def _edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        values[key] = value
        if value is ...:
            del values[key]
    path.write_text(json.dumps(values), "utf-8")


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "config.json", **changes)


def _link_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


MALFORMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: there is no such file"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{", "utf-8"), "config.json: not JSON"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]", "utf-8"), "not a JSON object"),
    "no model_type": (_config(model_type=...), "model_type None"),
    "other model_type": (_config(model_type="bert"), "model_type 'bert'"),
    "no hidden_size": (_config(hidden_size=...), "hidden_size is missing"),
    "no layers": (_config(num_hidden_layers=...), "num_hidden_layers is missing"),
    "no heads": (_config(num_attention_heads=...), "num_attention_heads is missing"),
    "no context": (_config(max_position_embeddings=...), "max_position_embeddings is missing"),
    "no eps": (_config(rms_norm_eps=...), "rms_norm_eps is missing"),
    "no vocab": (_config(vocab_size=...), "vocab_size None"),
    "text for a number": (_config(hidden_size="64"), "hidden_size '64'"),
    "true for a number": (_config(num_hidden_layers=True), "num_hidden_layers True"),
    "negative": (_config(intermediate_size=-1), "intermediate_size -1"),
    "absurd": (_config(num_hidden_layers=10**9), "num_hidden_layers 1000000000"),
    "wrong shape": (_config(intermediate_size=96), "config.json needs"),
    "wrong heads": (_config(num_key_value_heads=3), "num_key_value_heads"),
    "wrong activation": (_config(hidden_act="gelu"), "hidden_act 'gelu' is not supported"),
    "scaled positions": (
        _config(rope_parameters={"rope_type": "axial", "rope_theta": 1e4}),
        "'axial' is not supported",
    ),
    "scaled positions, a field": (
        _config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}),
        "factor of 'linear' is missing",
    ),
    "small vocabulary": (_config(vocab_size=400), "config.json needs"),
    "pickled": (_pickled, "pickled weights, which can run code"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: there is no such file"),
    "truncated": (_truncated, "model.safetensors: damaged or truncated"),
    "absurd header": (_header, "model.safetensors: damaged or truncated"),
    "link out": (_link_out, "leaves the folder"),
    "weight missing": (_tensors(lambda t: t.pop("model.norm.weight")), "model.norm.weight: the weight is missing"),
    "weight unknown": (
        _tensors(lambda t: t.update(extra=torch.ones(1))),
        "extra: the weight is not part of this model",
    ),
    "weight of integers": (
        _tensors(lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int64)})),
        "not floating-point",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: there is no such file"),
    "tokenizer no JSON": (lambda folder: (folder / "tokenizer.json").write_text("x", "utf-8"), "not JSON"),
    "index leaves": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}', "utf-8"),
        ],
        "leaves the folder",
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_folders_give_a_one_line_error(
    fault: str, llama: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    damage, expected = MALFORMED[fault]
    folder = Path(shutil.copytree(llama, tmp_path / "llama"))
    damage(folder)
    result = kiara("import", folder, "--out", tmp_path / "ours")
    assert result.exit_code == 1
    *before, told = result.stderr.splitlines()
    assert expected in told and all(line.startswith("Importing ") for line in before)  # the values are read last
    assert not (tmp_path / "ours").exists() and not list(tmp_path.glob(".ours*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 32, "layer_types": ["full_attention"]}, "give 'full_attention' or 'sliding_attention' for"),
        ({"sliding_window": 32, "layer_types": ["chunked_attention"] * 2}, "layer_types ['chunked_attention'"),
        ({"sliding_window": -1}, "sliding_window -1 cannot be used"),
        ({"sliding_window": "wide"}, "sliding_window 'wide'"),
    ],
)
def test_windows_that_are_none_are_refused(
    changes: dict[str, Any], message: str, texts: list[str], tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    make_folder("mistral", tmp_path / "mistral", texts)
    _edit(tmp_path / "mistral/config.json", **changes)
    result = kiara("import", tmp_path / "mistral", "--out", tmp_path / "ours")
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_exporting_an_imported_checkpoint_asks_for_held_out_text(
    llama: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    assert kiara("import", llama, "--out", tmp_path / "ours").exit_code == 0
    result = kiara("export", tmp_path / "ours", "--out", tmp_path / "bundle")
    assert result.exit_code == 1 and "give other text with --text" in result.stderr
    assert np.isfinite(
        json.loads(kiara("evaluate", tmp_path / "ours", "--text", llama / "config.json", "--json").stdout)["loss"]
    )


def test_a_pickled_checkpoint_is_refused(tmp_path: Path, kiara: Callable[..., Result]) -> None:
    torch.save({"model": torch.ones(2)}, tmp_path / "ckpt.pt")
    result = kiara("import", tmp_path / "ckpt.pt", "--out", tmp_path / "ours")
    assert result.exit_code == 1 and "pickled weights, which can run code" in result.stderr


@pytest.mark.parametrize("style", ["llama3", "smollm", "gpt2"])
@pytest.mark.slow
def test_tokenizers_agree_on_every_character_and_on_a_megabyte_of_one(style: str, texts: list[str]) -> None:
    library = make_tokenizer(style, texts)
    ours = settle_tokenizer(Path(style), json.loads(library.to_str()), {})
    assert ours.engine == "tiktoken"
    every = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    hard = ["".join(f"{c}a {c}1{c}" for c in every[i : i + 5000]) for i in range(0, len(every), 5000)]
    hard += [
        "a" * 1_000_000,
        "é" * 100_000,
        "\n" * 100_000,
        " " * 100_000 + "x",
        "9" * 100_000,
        bytes(range(256)).decode("utf-8", "replace"),
    ]
    library.encode_special_tokens = True
    for text in hard:
        assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("template", "said", "chats"),
    [
        ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT}], "", True),
        (
            [{"name": "tool_use", "template": "x"}],
            "No chat template: that of tokenizer_config.json is neither text",
            False,
        ),
        ("{% if tools %}{{ tools | no_such }}{% endif %}{{ messages[0].content }}", "cannot be used with tools", True),
        ("{{ messages | no_such }}", "cannot be used with a question", False),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}{{ strftime_now('%Y') }}", "", True),
    ],
)
def test_limits_of_a_chat_template_are_reported_at_import(
    template: Any, said: str, chats: bool, llama: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "theirs"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"chat_template": template}), "utf-8")
    result = kiara("import", folder, "--out", tmp_path / "ours")
    assert result.exit_code == 0 and said in result.stderr and ("chat template" in result.stderr.lower()) == bool(said)
    assert can_chat(Tokenizer.load(tmp_path / "ours")) is chats


def test_a_model_without_a_bos_token_begins_with_the_end_of_text_token(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": null, "eos_token_id": [7, 9]}')
    assert TokenIds.read(tmp_path) == TokenIds(7, frozenset({7, 9}))
