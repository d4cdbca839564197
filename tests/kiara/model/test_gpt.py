"""The model against `transformers`' Arcee class, and cached passes against the uncached one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kiara.checkpoints.checkpoint import find_checkpoint, load_model, save_checkpoint
from kiara.config.model import ModelConfig
from kiara.data.dataset import Dataset
from kiara.model.gpt import GPT
from kiara_runtime.tokens.tokenizer import Tokenizer

SHAPES = [
    {"num_attention_heads": 4, "num_key_value_heads": 4},
    {"num_attention_heads": 4, "num_key_value_heads": 1},
    {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 500000.0, "norm_eps": 1e-6},
]


def _random_model(vocab_size: int, **shape: Any) -> GPT:
    base = {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "intermediate_size": 192, "context_length": 64}
    model = GPT(ModelConfig.model_validate({**base, **shape}), vocab_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpoint_opens_in_transformers_with_the_same_logits(
    shape: dict[str, float], tmp_path: Path, dataset: Dataset
) -> None:
    from transformers import AutoModelForCausalLM

    model = _random_model(dataset.tokenizer.vocab_size, **shape)
    state = {"epoch": 0, "step": 1, "val_loss": 1.0}
    folder = save_checkpoint(tmp_path, model, dataset, {}, state).folder
    oracle = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(oracle).__name__ == "ArceeForCausalLM"
    ids = torch.randint(0, model.vocab_size, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], oracle(ids).logits, atol=1e-4, rtol=1e-5)
        loaded, tokenizer = load_model(folder)
        assert torch.equal(loaded(ids)[0], model(ids)[0])
    assert tokenizer.token_bytes == dataset.tokenizer.token_bytes


def test_the_checkpoint_tokenizer_matches_transformers(run: Path) -> None:
    from transformers import AutoTokenizer

    folder = find_checkpoint(run)
    oracle, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    text = "def f(x):\n    return  x + '日本'  # déjà\n\n\t👩‍🚀"
    assert oracle(text)["input_ids"] == ours.encode(text)
    assert oracle.decode(ours.encode(text)) == text
    assert oracle.eos_token_id == ours.special_tokens["<|endoftext|>"]


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_cached_passes_equal_the_uncached_one(chunk: int) -> None:
    model = _random_model(128, num_attention_heads=4, num_key_value_heads=2)
    ids = torch.randint(0, 128, (3, 50), generator=torch.Generator().manual_seed(1))
    past, found = None, []
    with torch.no_grad():
        expected, _ = model(ids)
        for start in range(0, 50, chunk):
            logits, past = model(ids[:, start : start + chunk], past)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=1e-5)


def test_initialisation_starts_at_the_uniform_loss_and_follows_the_seed() -> None:
    models = [GPT(ModelConfig(num_hidden_layers=2), 512) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.initialise(seed)
    ids = torch.arange(128)[None]
    losses = [model.loss(ids[:, :-1], ids[:, 1:]).item() for model in models]
    assert losses[0] == losses[1] != losses[2]
    assert abs(losses[0] - torch.log(torch.tensor(512.0)).item()) < 0.5


def test_a_compiled_model_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where PyTorch says, as up to 2.11, that a model it compiles is being exported."""
    model = _random_model(320, num_attention_heads=4, num_key_value_heads=2)
    ids = torch.arange(24).reshape(2, 12)
    eager = model.loss(ids, ids)
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, ids), eager, rtol=0, atol=0)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(model.loss(ids, ids), eager, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_softcap": 2.0},
        {"logit_scale": 0.3},
        {"tie_word_embeddings": False, "head_bias": True},
        {"embedding_scale": 3.0, "residual_scale": 0.5},
    ],
    ids=str,
)
def test_the_loss_is_the_cross_entropy_of_the_logits(changes: dict[str, Any]) -> None:
    model = _random_model(128, num_attention_heads=4, num_key_value_heads=2, **changes)
    ids = torch.randint(0, 128, (2, 30), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(model.predict(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), expected)


@pytest.mark.parametrize("changes", [{"sliding_window": 5}, {"attention_softcap": 1.5}, {"rotary_dim": 4}], ids=str)
def test_packed_texts_do_not_see_each_other_with_other_forms_of_attention(changes: dict[str, Any]) -> None:
    model = _random_model(128, num_attention_heads=4, num_key_value_heads=2, **changes)
    ids = torch.randint(0, 128, (1, 40), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([0] * 23 + [1] * 17)[None]
    alone = [model.predict(ids[:, :23]), model.predict(ids[:, 23:])]
    torch.testing.assert_close(model.predict(ids, segments), torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


def test_a_window_limits_what_a_token_sees() -> None:
    model = _random_model(128, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1, sliding_window=5)
    ids = torch.randint(0, 128, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 0] += 1
    differs = (model.predict(ids) != model.predict(changed)).any(-1)[0]
    assert differs[:5].all() and not differs[5:].any()
