"""Every family against `transformers`, as a checkpoint that it wrote and as one that we write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kiara import sizes
from kiara.checkpoint import load_model, save_checkpoint
from kiara.data import Dataset
from kiara.families import FAMILIES

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
MODELS = {
    "arcee": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "arcee-biases": {**SMALL, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama": {**SMALL, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
    "llama-tied": {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 32},
    "llama-biases": {**SMALL, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "mistral": {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": None},
    "qwen2": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2-untied": {**SMALL, "num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 16},
    "qwen3-biases": {**SMALL, "num_key_value_heads": 2, "head_dim": 32, "attention_bias": True},
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "n_inner": 64, "tie_word_embeddings": False},
}


def _theirs(name: str, vocab_size: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name.split("-")[0], vocab_size=vocab_size, **MODELS[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms, too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_their_checkpoint_is_our_model_and_ours_is_theirs(name: str, dataset: Dataset, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = _theirs(name, dataset.tokenizer.vocab_size)
    theirs.save_pretrained(tmp_path / "theirs")
    dataset.tokenizer.save(tmp_path / "theirs")
    ours, _ = load_model(tmp_path / "theirs")
    ids = torch.randint(0, ours.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids)[0], expected, atol=1e-4, rtol=1e-4)
        first, past = ours(ids[:, :17])
        rest, _ = ours(ids[:, 17:], past)
        torch.testing.assert_close(torch.cat((first, rest), 1), expected, atol=1e-4, rtol=1e-4)
    counted = sum(parameter.numel() for parameter in ours.parameters())
    assert sizes.parameters(ours.config, ours.vocab_size) == counted == theirs.num_parameters()

    state = {"epoch": 0, "step": 1, "val_loss": 1.0}
    folder = save_checkpoint(tmp_path, ours, dataset.tokenizer, {}, state).folder
    back = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] in FAMILIES
