"""Checkpoints of nanoGPT and llama2.c, written here as these programs write them, against `transformers`."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from families import make_model, make_tokenizer
from sentencepiece_models import train

from kiara.checkpoints.checkpoint import load_model
from kiara.data.token_ids import TokenIds
from kiara.importing.importer import import_model
from kiara_runtime.errors import UserError

LLAMA_NAMES = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
    "input_layernorm": "attention_norm", "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip
BLOCK = (
    *"attention_norm attention.wq attention.wk attention.wv attention.wo ffn_norm".split(),
    *"feed_forward.w1 feed_forward.w2 feed_forward.w3".split(),
)


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]


@pytest.fixture(scope="module")
def gpt2_tokenizer(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer("gpt2", texts).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def pieces(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    train("llama", texts, path, 600)
    return path


def _nanogpt(model: Any, path: Path, bias: bool, compiled: bool) -> None:
    config = model.config
    state = {
        ("_orig_mod." if compiled else "") + name: tensor.T.contiguous() if _is_conv(name) else tensor
        for name, tensor in model.state_dict().items()
        if bias or not name.endswith(".bias")
    }
    arguments = {
        "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "block_size": config.n_positions,
        "bias": bias, "vocab_size": config.vocab_size, "dropout": 0.0,
    }  # fmt: skip
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    saved = {"model": state, "model_args": arguments, "optimizer": optimizer, "iter_num": 7, "config": {"eval": True}}
    torch.save(saved, path)


def _is_conv(name: str) -> bool:
    return name.endswith(".weight") and any(f".{part}." in name for part in ("c_attn", "c_proj", "c_fc"))


@pytest.mark.parametrize(("bias", "compiled"), [(True, False), (False, True)])
def test_nanogpt(bias: bool, compiled: bool, gpt2_tokenizer: Path, tmp_path: Path) -> None:
    """It is GPT-2 with exact GELU; without biases it has none in its norms, either."""
    theirs = make_model("gpt2", 507)
    theirs.config.activation_function = "gelu"
    for block in theirs.transformer.h:
        block.mlp.act = torch.nn.GELU()
    if not bias:
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name.endswith(".bias"):
                    parameter.zero_()
    _nanogpt(theirs, tmp_path / "ckpt.pt", bias, compiled)
    import_model(tmp_path / "ckpt.pt", tmp_path / "ours", gpt2_tokenizer)
    ours, tokenizer = load_model(tmp_path / "ours")
    assert TokenIds.read(tmp_path / "ours").eos == {tokenizer.special_tokens["<|endoftext|>"]}
    _same(theirs, ours)


def _same(theirs: Any, ours: Any) -> None:
    ids = torch.randint(0, ours.vocab_size, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=5e-5, rtol=0)


def _llama2c(model: Any) -> dict[str, torch.Tensor]:
    """Its names, with the rows of queries and keys in the pairs that are rotated together."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for part, heads in (("q_proj", 4), ("k_proj", model.config.num_key_value_heads)):
            if part in name:
                tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        for theirs, own in LLAMA_NAMES.items():
            name = name.replace(theirs, own)
        state[name] = tensor.contiguous()
    return state


def _write(model: Any, path: Path, kind: str) -> None:
    config, state, shared = model.config, _llama2c(model), model.config.tie_word_embeddings
    layers = range(config.num_hidden_layers)
    sizes = [config.hidden_size, config.intermediate_size, len(layers), 4, config.num_key_value_heads]
    vocab, length = config.vocab_size, config.max_position_embeddings
    if kind == "pt":
        arguments = {
            "dim": config.hidden_size, "n_layers": len(layers), "n_heads": 4, "n_kv_heads": sizes[4],
            "vocab_size": vocab, "multiple_of": 32, "max_seq_len": length, "dropout": 0.0,
        }  # fmt: skip
        torch.save({"model": state, "model_args": arguments, "iter_num": 1}, path)
        return
    stacked = {name: torch.stack([state[f"layers.{i}.{name}.weight"] for i in layers]) for name in BLOCK}
    whole = {name: state[f"{name}.weight"] for name in ("tok_embeddings", "norm", *(() if shared else ("output",)))}
    if kind == "v0":
        head = struct.pack("<7i", *sizes, vocab if shared else -vocab, length)
        unused = np.ones(length * (config.hidden_size // 4), np.float32)  # cosines and sines
        order = [whole["tok_embeddings"], *stacked.values(), whole["norm"], torch.from_numpy(unused)]
    else:
        head = struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, vocab, length, shared).ljust(256, b"\0")
        norms = [stacked.pop(name) for name in ("attention_norm", "ffn_norm")]
        order = [*norms, whole["norm"], whole["tok_embeddings"], *stacked.values()]
    order += [] if shared else [whole["output"]]
    path.write_bytes(head + b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in order))


@pytest.mark.parametrize("kind", ["v0", "v1", "pt"])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_llama2c(kind: str, name: str, pieces: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1 if name == "llama-tied" else 2, max_position_embeddings=64, rms_norm_eps=1e-5,
        tie_word_embeddings=name == "llama-tied", initializer_range=0.2,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path / ("stories.pt" if kind == "pt" else "stories.bin")
    _write(theirs, path, kind)
    import_model(path, tmp_path / "ours", pieces)
    ours, tokenizer = load_model(tmp_path / "ours")
    assert ours.config.tie_word_embeddings == config.tie_word_embeddings
    assert tokenizer.prompt_prefix == [1]
    assert TokenIds.read(tmp_path / "ours").eos == {1, 2}  # its own program ends a text at either
    _same(theirs, ours)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch evil",))


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.pt", lambda path: torch.save({"model": Evil(), "model_args": {}}, path), "pickled weights"),
        ("a.pt", lambda path: torch.save({"weights": torch.ones(2)}, path), "pickled weights, which can run code"),
        ("a.pt", lambda path: torch.save({"model": {}, "model_args": {"n_embd": 4}}, path), "are not complete"),
        ("a.pt", lambda path: path.write_bytes(b"x"), "pickled weights, which can run code"),
        ("a.bin", lambda path: path.write_bytes(b""), "too short"),
        ("a.bin", lambda path: path.write_bytes(bytes(100)), "has no sizes of a model"),
        ("a.bin", lambda path: path.write_bytes(struct.pack("<9i", 64, 80, 2, 4, 2, 600, 64, 0, 0)), "shorter than"),
        ("a.bin", lambda path: path.write_bytes(struct.pack("<I8i", 0x616B3432, 2, *[1] * 7)), "is quantised"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_line(
    name: str,
    write: Callable[[Path], Any],
    expected: str,
    gpt2_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kiara: Callable[..., Result],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    result = kiara("import", tmp_path / name, "--out", tmp_path / "ours", "--tokenizer", gpt2_tokenizer)
    assert result.exit_code == 1
    assert expected in result.stderr and result.stderr.count("\n") == 1
    assert result.stderr.count(name) == 1
    assert not (tmp_path / "evil").exists() and not (tmp_path / "ours").exists()


def test_a_tokenizer_is_asked_for_where_there_is_none_and_only_there(pieces: Path, tmp_path: Path) -> None:
    _nanogpt(make_model("gpt2", 507), tmp_path / "ckpt.pt", bias=True, compiled=False)
    with pytest.raises(UserError, match="holds no tokenizer; give --tokenizer"):
        import_model(tmp_path / "ckpt.pt", tmp_path / "ours")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="has its own tokenizer; leave it out"):
        import_model(tmp_path / "folder", tmp_path / "ours", pieces)
