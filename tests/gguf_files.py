"""GGUF files of small random models, written by the `gguf` package in llama.cpp's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from families import CHAT, make_model, make_tokenizer
from numpy.typing import NDArray
from sentencepiece_models import FOUND

Writer = gguf.GGUFWriter
Change = Callable[[Writer], Any]
ARCHITECTURES = {
    "arcee": "arcee", "llama": "llama", "llama-biases": "llama", "mistral-window": "llama", "qwen2": "qwen2",
    "qwen3": "qwen3", "granite": "granite", "smollm3": "smollm3", "phi": "phi2", "phi3": "phi3", "phi3-mini": "phi3",
    "stablelm": "stablelm", "stablelm-parallel": "stablelm", "gpt_neox": "gptneox", "gpt_neox-serial": "gptneox",
    "olmo2": "olmo2", "olmo3": "olmo2", "exaone4": "exaone4", "exaone4-full": "exaone4", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "starcoder2": "starcoder2", "falcon": "falcon", "falcon-several": "falcon", "gpt2": "gpt2",
    "llama-3.2": "llama",
}  # fmt: skip
PAIRED = ("llama", "arcee", "granite", "smollm3")  # rows of a query or key head in the pairs that are rotated


def write_gguf(
    path: Path,
    texts: list[str],
    name: str = "llama",
    change: Change = lambda writer: None,
    pre: str = "smollm",
    without: str = "",
    split: int = 0,
    pieces: Any = None,
    kind: str = "F32",
) -> Any:
    """Write a file; return the model in it and its tokenizer.

    without: a key to leave out. split: tensors per part. pieces: a SentencePieceProcessor, instead of byte-level BPE.
    kind: type of the matrices that have blocks of 32.
    """
    tokenizer = make_tokenizer("llama3" if pre == "llama-bpe" else "smollm", texts)
    size = tokenizer.get_vocab_size() if pieces is None else pieces.vocab_size()
    model = make_model(name, size)
    architecture = ARCHITECTURES[name]
    writer = Writer(path, architecture, split_max_tensors=split)
    _write_shape(writer, model.config)
    _write_rotation(writer, model.config, architecture)
    _write_further(writer, model.config)
    if pieces is None:
        _write_byte_level(writer, tokenizer, pre)
    else:
        _write_pieces(writer, pieces)
    writer.add_chat_template(CHAT)
    change(writer)
    for values in writer.kv_data:
        values.pop(without, None)
    _write_tensors(writer, model, architecture, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def _write_byte_level(writer: Writer, tokenizer: Any, pre: str) -> None:
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 1)


def _write_pieces(writer: Writer, pieces: Any) -> None:
    """llama.cpp spells user-defined pieces with blanks, because it looks for them in the text itself."""
    ids = range(pieces.vocab_size())
    kinds = [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1 for i in ids]
    names = [pieces.id_to_piece(i) for i in ids]
    found = [i for i in ids if kinds[i] == 1 and names[i] in FOUND and pieces.get_score(i) == 0]
    for i in found:
        kinds[i], names[i] = 4, names[i].replace("▁", " ")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores([pieces.get_score(i) for i in ids])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())


def _write_shape(writer: Writer, config: Any) -> None:
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_hidden_size", None) or 4 * width
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    one = getattr(config, "multi_query", False)
    writer.add_head_count_kv(1 if one else getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if (size := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(size)
        writer.add_value_length(size)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    for key in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if (epsilon := getattr(config, key, None)) is not None:
            writer.add_layer_norm_eps(epsilon)


def _write_rotation(writer: Writer, config: Any, architecture: str) -> None:
    if not (rope := getattr(config, "rope_parameters", None)):
        return
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full["rope_theta"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(size * full.get("partial_rotary_factor", 1.0)))
    kind = full["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(full["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if kind == "longrope":
        original = full.get("original_max_position_embeddings") or config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        longer = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors((1 + np.log(longer) / np.log(original)) ** 0.5)
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(full[f"{name}_factor"], np.float32))
    if kind == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = full["rope_theta"] ** (-np.arange(0, size, 2) / size)
        writer.add_tensor("rope_freqs.weight", (plain / scaled.numpy()).astype(np.float32))


def _write_further(writer: Writer, config: Any) -> None:
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        if kinds and config.model_type in ("olmo3", "exaone4"):
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    if config.model_type in ("gpt_neox", "stablelm"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        writer.add_attention_scale(config.attention_multiplier)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_tensors(writer: Writer, model: Any, architecture: str, kind: gguf.GGMLQuantizationType) -> None:
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith((".attn.bias", ".masked_bias", "inv_freq")) or (name == "lm_head.weight" and _tied(config)):
            continue
        values = _stored(name, tensor.numpy(), config, architecture)
        stored = np.ascontiguousarray(values)
        known = kind if values.ndim == 2 and values.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        stored = gguf.quantize(stored, known)
        writer.add_tensor(table.get_name(name, try_suffixes=(".weight", ".bias")), stored, raw_dtype=known)


def _tied(config: Any) -> bool:
    return bool(config.tie_word_embeddings)


def _stored(name: str, values: NDArray[np.float32], config: Any, architecture: str) -> NDArray[np.float32]:
    """A tensor as llama.cpp's converter stores it."""
    if architecture in PAIRED and (part := re.search(r"\.([qk])_proj\.", name)):
        heads = config.num_attention_heads if part[1] == "q" else config.num_key_value_heads
        return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
    if "query_key_value" in name:
        keys = 1 if getattr(config, "multi_query", False) else config.num_attention_heads
        size = config.hidden_size // config.num_attention_heads
        groups = values.reshape(keys, -1, size, *values.shape[1:])
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", name):
        return values.T
    return values
