"""The files that let other runtimes open a bundle: transformers.js and onnxruntime-genai.

Both identify a model by its architecture's name. Here `llama` only selects the names and shapes of inputs and
outputs; the operators are in the graph, and the real architecture is in `kiara.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiara.config import ModelConfig
from kiara_export.graph import beside
from kiara_runtime.bundle import FLOAT32, Variant, io_names


def write_interop(
    folder: Path, config: ModelConfig, vocab_size: int, ids: dict[str, Any], variants: list[Variant]
) -> None:
    """Write config.json, generation_config.json and genai_config.json; onnxruntime-genai opens the first variant."""
    graphs = [folder / variant.file for variant in variants]
    apart = {graph.name: 1 for graph in graphs if beside(graph).exists()}
    javascript: dict[str, Any] = {"use_external_data_format": apart} if apart else {}
    if caches := {variant.transformers_js: variant.cache for variant in variants if variant.cache != FLOAT32.cache}:
        javascript["kv_cache_dtype"] = caches
    hints = {"transformers.js_config": javascript} if javascript else {}
    _write(folder / "config.json", {**_transformers_config(config, vocab_size), **ids, **hints})
    _write(folder / "generation_config.json", ids)
    _write(folder / "genai_config.json", _genai_config(config, vocab_size, ids, variants[0].file))


def _transformers_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _genai_config(config: ModelConfig, vocab_size: int, ids: dict[str, Any], graph_file: str) -> dict[str, Any]:
    """Contents of genai_config.json. Add no other keys: onnxruntime-genai rejects a file with an unknown key."""
    inputs, outputs = io_names(1)
    past_key, past_value = (name.replace(".0.", ".%d.") for name in inputs[2:])
    present_key, present_value = (name.replace(".0.", ".%d.") for name in outputs[1:])
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph_file,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": inputs[0],
            "attention_mask": inputs[1],
            "past_key_names": past_key,
            "past_value_names": past_value,
        },
        "outputs": {
            "logits": outputs[0],
            "present_key_names": present_key,
            "present_value_names": present_value,
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
    }
    model_section = {
        **ids,
        "context_length": config.context_length,
        "decoder": decoder,
        "type": "llama",
        "vocab_size": vocab_size,
    }
    search = {"max_length": config.context_length, "past_present_share_buffer": True, "do_sample": False}
    return {"model": model_section, "search": search}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
