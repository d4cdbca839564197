"""GGUF files, written by the `gguf` package in llama.cpp's layout, against the model they came from."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import Result
from gguf_files import ARCHITECTURES, write_gguf
from sentencepiece_models import train

from kiara.checkpoints.checkpoint import load_model
from kiara.data.token_ids import TokenIds
from kiara.importing import weights
from kiara.importing.gguf_container import Container
from kiara.importing.importer import import_model
from kiara_export.quantize.kept import kept
from kiara_runtime.errors import UserError
from kiara_runtime.tokens.chat import chat_ids
from kiara_runtime.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]


def test_a_gguf_import_matches_the_original_model(texts: list[str], tmp_path: Path) -> None:
    theirs, library = write_gguf(tmp_path / "model.gguf", texts)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    ours, tokenizer = load_model(tmp_path / "ours")
    ids = torch.randint(0, ours.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=1e-4, rtol=1e-4)
    text = "def f(x):\n    return x[12345] + 3.14  # déjà 日本\n\n"
    assert tokenizer.encode(text) == library.encode(text).ids
    prompt = chat_ids(tokenizer, [{"role": "user", "content": "hello"}])
    assert prompt[0] == tokenizer.special_tokens["<|im_start|>"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_the_logits_of_its_original(name: str, texts: list[str], tmp_path: Path) -> None:
    """Gemma's factor on scores is not in these files: llama.cpp, too, takes the width of a head."""
    theirs, _ = write_gguf(tmp_path / "model.gguf", texts, name)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    ours, _ = load_model(tmp_path / "ours")
    size = min(60, ours.config.context_length)
    ids = torch.randint(0, ours.vocab_size, (2, size), generator=torch.Generator().manual_seed(1))
    if name.startswith("gemma"):
        for layer in theirs.model.layers:
            layer.self_attn.scaling = theirs.config.head_dim**-0.5
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
            "rope.scaling.type: 'longrope' is not supported",
        ),
        (
            lambda writer: writer.add_tensor("rope_freqs.weight", np.full(8, 3.0, np.float32)),
            "rope_freqs.weight: these divisors of frequencies are not those of Llama 3",
        ),
        (
            lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.ones(8, np.float32)),
            "blk.0.attn_sinks.weight: the weight is not part of this model",
        ),
        (lambda writer: writer.add_key_length(32), "attention.value_length: is not supported where a key has 32"),
        (lambda writer: writer.add_expert_count(8), "expert_count 8 is not supported"),
        (lambda writer: writer.add_head_count_kv([2, 4]), "differs from layer to layer"),
        (lambda writer: writer.add_tokenizer_pre("kimi-k2"), "tokenizer.ggml.pre: 'kimi-k2' is not supported"),
        (lambda writer: writer.add_tokenizer_model("bert"), "tokenizer.ggml.model: 'bert' is not supported"),
    ],
)
def test_unsupported_gguf_files_are_refused(
    change: Callable[[gguf.GGUFWriter], Any],
    expected: str,
    texts: list[str],
    tmp_path: Path,
    kiara: Callable[..., Result],
) -> None:
    write_gguf(tmp_path / "model.gguf", texts, change=change)
    result = kiara("import", tmp_path / "model.gguf", "--out", tmp_path / "ours")
    assert result.exit_code == 1
    assert expected in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_damaged_gguf_files_give_a_one_line_error(
    texts: list[str], tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, texts)
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

    write_gguf(tmp_path / "model.gguf", texts, change=change, pre=pre)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    assert tokenizer.prompt_prefix == ([tokenizer.special_tokens["<|im_start|>"]] if prefix else [])


def test_all_end_tokens_known_to_llama_cpp_are_imported(texts: list[str], tmp_path: Path) -> None:
    """The key gives one of them; llama.cpp knows the other by its text."""
    write_gguf(tmp_path / "model.gguf", texts)
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
    write_gguf(tmp_path / "model.gguf", texts, without=key)
    with pytest.raises(UserError, match=f"{key}: the key is missing.*convert the model again"):
        import_model(tmp_path / "model.gguf", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_model_in_several_files_is_imported_from_the_first(texts: list[str], tmp_path: Path) -> None:
    theirs, _ = write_gguf(tmp_path / "model.gguf", texts, split=5)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2 and parts[0].name.startswith("model-00001-of-")
    with pytest.raises(UserError, match=f"is not the first part; give {parts[0].name}"):
        import_model(parts[1], tmp_path / "ours")
    import_model(parts[0], tmp_path / "ours")
    ours, _ = load_model(tmp_path / "ours")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=5e-5, rtol=0)
    parts[2].unlink()
    with pytest.raises(UserError, match="copy all parts of the model into one folder"):
        import_model(parts[0], tmp_path / "again")


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q5_0", 8), ("Q4_0", 4)])
def test_the_export_rounds_no_matrix_of_a_quantised_file(
    kind: str, bits: int, texts: list[str], tmp_path: Path
) -> None:
    """Also those that are packed in one matrix here, whose rows llama.cpp stores in another order."""
    write_gguf(tmp_path / "model.gguf", texts, kind=kind)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    ours, _ = load_model(tmp_path / "ours")
    for name, matrix in ours.matrices().items():
        weight = matrix.detach().numpy()
        if weight.shape[1] % 32:
            continue
        made = kept(weight, bits)
        assert made is not None, name
        np.testing.assert_array_equal(made.weight(), weight)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_tensors_have_the_values_of_the_gguf_package(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of rows, as they are read to save memory, and whole."""
    kinds = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((70, 64)).astype(np.float32)
    data = gguf.quants.quantize(values, kinds)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("a.weight", data, raw_dtype=kinds)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(weights, "PIECE", 1000)
    pieces = list(Container(tmp_path / "one.gguf").tensors["a.weight"].pieces())
    assert len(pieces) > 3
    read = np.concatenate(pieces)
    np.testing.assert_array_equal(read, gguf.quants.dequantize(data, kinds))


@pytest.mark.parametrize(
    ("kind", "prepend", "bos"), [("gemma", False, None), ("llama", None, None), ("llama", True, False)]
)
def test_a_sentencepiece_tokenizer_has_the_ids_of_the_original(
    kind: str, prepend: bool | None, bos: bool | None, texts: list[str], tmp_path: Path
) -> None:
    """A blank before a text, and the BOS token, unless the file says no, as in llama.cpp."""

    def change(writer: gguf.GGUFWriter) -> None:
        if prepend is not None:
            writer.add_add_space_prefix(prepend)
        if bos is not None:
            writer.add_add_bos_token(bos)

    theirs = train(kind, texts, tmp_path / "tokenizer.model")
    write_gguf(tmp_path / "model.gguf", texts, change=change, pieces=theirs)
    import_model(tmp_path / "model.gguf", tmp_path / "ours")
    ours = Tokenizer.load(tmp_path / "ours")
    assert ours.engine == "tiktoken"
    assert ours.prompt_prefix == ([] if bos is False else [theirs.bos_id()])
    for text in (*texts[:3], "   def f():\n\n\n\treturn <b>x</b>   日本\u0301👩🏽", "", " "):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "kind", "value", "expected"),
    [
        ("general.alignment", 4, struct.pack("<I", 0), "general.alignment is 0"),
        ("a", 9, struct.pack("<IQ", 0, 1 << 40), "is too long"),
        ("a", 9, struct.pack("<IQ", 9, 1), "values of type 9 are not known"),
        ("a", 8, struct.pack("<Q", 1 << 60), "ends too early"),
        ("a", 77, b"", "values of type 77 are not known"),
    ],
)
def test_a_hostile_header_is_refused(name: str, kind: int, value: bytes, expected: str, tmp_path: Path) -> None:
    key = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    with pytest.raises(UserError, match=rf"model.gguf: damaged or truncated \(.*{expected}"):
        import_model(tmp_path / "model.gguf", tmp_path / "ours")
