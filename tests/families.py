"""Small models and tokenizers of other model families, made by their own libraries: the oracles of the import tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
HALF = {  # half of each head is rotated
    **SMALL,
    "num_attention_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
}
FALCON = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
MODELS: dict[str, dict[str, Any]] = {
    "arcee": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "arcee-biases": {**SMALL, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama": {**SMALL, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
    "llama-tied": {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 32},
    "llama-biases": {**SMALL, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama-3.2": {
        **SMALL,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": None},
    "qwen2": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2-untied": {**SMALL, "num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 16},
    "qwen3-biases": {**SMALL, "num_key_value_heads": 2, "head_dim": 32, "attention_bias": True},
    "mistral-window": {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24},
    "qwen2-window": {
        **SMALL,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
    },
    "granite": {
        **SMALL,
        "num_key_value_heads": 2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 1.7,
        "attention_multiplier": 0.2,
    },
    "granitemoehybrid": {
        **SMALL,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "shared_intermediate_size": 80,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
        "layer_types": ["attention"] * 2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 1.7,
        "attention_multiplier": 0.2,
    },
    "smollm3": {**SMALL, "num_hidden_layers": 5, "num_key_value_heads": 2},
    "phi3": {**SMALL, "num_key_value_heads": 2},
    "phi3-mini": {
        **SMALL,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "original_max_position_embeddings": 48,
        "sliding_window": 30,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.2, 1.4, 1.5, 1.9, 2.0, 2.1],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 9.0, 9.0],
        },
    },
    "phi": {**SMALL, "num_attention_heads": 2},
    "stablelm": {**HALF, "num_key_value_heads": 1, "use_qkv_bias": True},
    "stablelm-parallel": {**HALF, "num_key_value_heads": 2, "use_parallel_residual": True},
    "gpt_neox": HALF,
    "gpt_neox-serial": {**HALF, "use_parallel_residual": False, "attention_bias": False},
    "olmo2": {**SMALL, "num_key_value_heads": 2},
    "olmo3": {
        **SMALL,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "sliding_window": 20,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "exaone4": {**SMALL, "num_hidden_layers": 5, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 20},
    "exaone4-full": {
        **SMALL,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
    },
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 24},
    "gemma3_text": {
        **SMALL,
        "num_hidden_layers": 7,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "sliding_window": 20,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "starcoder2": {**SMALL, "num_key_value_heads": 2, "sliding_window": 24},
    "starcoder2-untied": {**SMALL, "num_key_value_heads": 4, "use_bias": False, "tie_word_embeddings": False},
    "falcon": {**FALCON, "ffn_hidden_size": 96},
    "falcon-several": {**FALCON, "multi_query": False},
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "n_inner": 64, "tie_word_embeddings": False},
}
NARROW = {"gpt_neox-narrow": {**SMALL, "num_attention_heads": 2}}  # rotates a quarter of each head
STYLES = {
    "granite": "gpt2",
    "granitemoehybrid": "gpt2",
    "smollm3": "llama3",
    "phi3": "llama3",
    "phi": "gpt2",
    "stablelm": "gpt2",
    "gpt_neox": "gpt2",
    "olmo2": "gpt2",
    "olmo3": "gpt2",
    "exaone4": "gpt2",
    "gemma2": "gpt2",
    "gemma3_text": "gpt2",
    "falcon": "gpt2",
    "starcoder2": "gpt2",
    "arcee": "llama3",
    "llama": "llama3",
    "mistral": "smollm",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "gpt2": "gpt2",
}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(name: str, vocab_size: int) -> Any:
    """A random model of `transformers`' own class, with random biases and norms."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": vocab_size - 3, "eos_token_id": vocab_size - 1, "pad_token_id": vocab_size - 1}
    config = AutoConfig.for_model(name.split("-")[0], vocab_size=vocab_size, **{**MODELS, **NARROW}[name], **ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_tokenizer(style: str, texts: Iterable[str], vocab_size: int = 501) -> Tokenizer:
    """A byte-level BPE that splits like the tokenizer of a family, with three special tokens last."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style in ("gpt2", "smollm"))
    if style == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif style == "gpt2":
        tokenizer.pre_tokenizer = byte_level
    else:
        split = pre_tokenizers.Split(Regex(LLAMA3 if style == "llama3" else QWEN), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 3, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    if style == "llama3":
        start = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    return tokenizer


def make_folder(name: str, folder: Path, texts: Iterable[str], **save: Any) -> Any:
    """Write a Hugging Face folder of family `name` with a matching tokenizer; return the model."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = make_tokenizer(STYLES[name.split("-")[0]], texts)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **names)
    fast.save_pretrained(folder)
    model = make_model(name, tokenizer.get_vocab_size() + 6)  # padded beyond the tokenizer, to an odd size
    model.save_pretrained(folder, **save)
    return model
