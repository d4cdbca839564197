"""GGUF files, written by the `gguf` package in llama.cpp's layout, against the model they came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import Result
from families import CHAT, make_model, make_tokenizer

from kiara.checkpoints.checkpoint import load_model
from kiara.data.token_ids import TokenIds
from kiara.importing.importer import import_model
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.chat import chat_ids
from kiara_runtime.tokens.tokenizer import Tokenizer

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def _write(
    path: Path,
    texts: list[str],
    change: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    pre: str = "smollm",
    without: str = "",
) -> Any:
    """Write a GGUF file; return the model in it and its tokenizer. without: a key to leave out."""
    tokenizer = make_tokenizer("llama3" if pre == "llama-bpe" else "smollm", texts)
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    model = make_model("llama", len(tokens))
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template(CHAT)
    change(writer)
    for values in writer.kv_data:
        values.pop(without, None)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp's order of rows: (2, half) to (half, 2)
                rows = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
                values = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]


def test_a_gguf_import_matches_the_original_model(texts: list[str], tmp_path: Path) -> None:
    theirs, library = _write(tmp_path / "model.gguf", texts)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    ours, tokenizer = load_model(tmp_path / "ours")
    ids = torch.randint(0, ours.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=1e-4, rtol=1e-4)
    text = "def f(x):\n    return x[12345] + 3.14  # déjà 日本\n\n"
    assert tokenizer.encode(text) == library.encode(text).ids
    prompt = chat_ids(tokenizer, [{"role": "user", "content": "hello"}])
    assert prompt[0] == tokenizer.special_tokens["<|im_start|>"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            "llama.rope.scaling.type 'yarn' is not supported",
        ),
        (
            lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32)),
            "rope_freqs.weight: the weight is not part of this model",
        ),
        (lambda writer: writer.add_key_length(32), "config.json needs"),
    ],
)
def test_unsupported_gguf_files_are_refused(
    change: Callable[[gguf.GGUFWriter], Any],
    expected: str,
    texts: list[str],
    tmp_path: Path,
    kiara: Callable[..., Result],
) -> None:
    _write(tmp_path / "model.gguf", texts, change)
    result = kiara("import", tmp_path / "model.gguf", "--out", tmp_path / "ours")
    assert result.exit_code == 1
    assert expected in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_damaged_gguf_files_give_a_one_line_error(
    texts: list[str], tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    path = tmp_path / "model.gguf"
    _write(path, texts)
    data = path.read_bytes()
    for damaged in (b"", b"GGUF", data[:100], data[: len(data) // 2], data[:-1000], b"XXXX" + data[4:]):
        path.write_bytes(damaged)
        result = kiara("import", path, "--out", tmp_path / "ours")
        assert result.exit_code == 1
        assert "model.gguf" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("pre", "said", "prefix"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False), ("smollm", True, True)],
)
def test_a_bos_token_is_added_where_llama_cpp_adds_one(
    pre: str, said: bool | None, prefix: bool, texts: list[str], tmp_path: Path
) -> None:
    """Decided by `add_bos_token`, or if that is absent by the pre-tokenizer, as in llama.cpp."""

    def change(writer: gguf.GGUFWriter) -> None:
        if said is not None:
            writer.add_add_bos_token(said)

    _write(tmp_path / "model.gguf", texts, change, pre)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    assert tokenizer.prompt_prefix == ([tokenizer.special_tokens["<|im_start|>"]] if prefix else [])


def test_all_end_tokens_known_to_llama_cpp_are_imported(texts: list[str], tmp_path: Path) -> None:
    """The key gives one of them; llama.cpp knows the other by its text."""
    _write(tmp_path / "model.gguf", texts)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    special = Tokenizer.load(tmp_path / "ours").special_tokens
    assert TokenIds.read(tmp_path / "ours").eos == {special["<|im_end|>"], special["<|endoftext|>"]}


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer.ggml.pre", "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id",
        "llama.context_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon",
    ],
)  # fmt: skip
def test_a_missing_key_is_named(key: str, texts: list[str], tmp_path: Path) -> None:
    _write(tmp_path / "model.gguf", texts, without=key)
    with pytest.raises(UserError, match=f"{key}: the key is missing.*convert the model again"):
        import_model(tmp_path / "model.gguf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
