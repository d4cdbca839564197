"""Every key of Hugging Face files, set to another legal value: used as in `transformers`, harmless, or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_folder

import kiara.importing.tokenizers
from kiara.checkpoints.checkpoint import _from_hugging_face
from kiara.families.known_keys import GENERATION, GENERATION_FIXED, RECOMMENDED, check_keys
from kiara.families.registry import family_of, read_config, write_config
from kiara.importing.importer import import_model
from kiara.importing.tokenizers import hard_texts, read_tokenizer
from kiara.model.gpt import GPT
from kiara_runtime.errors import UserError

FAMILIES = (
    "arcee", "llama", "mistral", "qwen2", "qwen3", "gpt2", "granite", "smollm3", "phi3", "phi", "stablelm", "gpt_neox",
    "olmo2", "olmo3", "exaone4", "gemma2", "gemma3_text", "falcon", "starcoder2", "granitemoehybrid",
)  # fmt: skip
TEXTS = ["some text to learn a few merges from, and the text of a test: def f(x): return x + 12345"] * 3
IDS = torch.randint(0, 300, (1, 64), generator=torch.Generator().manual_seed(1))
ODD = {"falcon": {"output_attentions"}}  # it changes the logits of `transformers`' own Falcon
# Keys that occur in files, in addition to the defaults of the `transformers` class.
OTHERS: dict[str, list[Any]] = {
    "rope_scaling": [None, {"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 123.0}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    ],
    "rope_theta": [500.0, 10000],
    "partial_rotary_factor": [1.0, 0.5],
    "sliding_window": [None, 8, 64, 4096],
    "use_sliding_window": [True, False],
    "layer_types": [["sliding_attention", "full_attention"], ["full_attention", "full_attention"]],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "hidden_act": ["gelu", "relu", "silu", "swish", "relu2"],
    "activation_function": ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
    "logits_scaling": [2.0],
    "attention_multiplier": [0.5],
    "final_logit_softcapping": [30.0],
    "a_key_of_somebody": [1],
    "head_dim": [8, 16, 32],
    "dtype": ["float32", "bfloat16"],
    "torch_dtype": ["float32"],
}  # fmt: skip


def _other_values(key: str, value: Any) -> list[Any]:
    """Other legal values of a key."""
    found = list(OTHERS.get(key, []))
    if isinstance(value, bool):
        found.append(not value)
    elif isinstance(value, int):
        found += [value + 1, value * 2]
    elif isinstance(value, float):
        found += [value * 2 or 0.5, 1.0]
    elif value is None and key not in OTHERS:
        found += [1]
    return [other for other in found if other != value or type(other) is not type(value)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A Hugging Face folder and its weights."""
    folder = tmp_path_factory.mktemp("keys") / request.param
    return folder, make_folder(request.param, folder, TEXTS).state_dict()


def _theirs(values: dict[str, Any], state: dict[str, Any]) -> torch.Tensor | None:
    """The logits of `transformers`; None if the model cannot be built or has other weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        values = copy.deepcopy(values)
        values.pop("time_step_limit", None)  # has an infinity, which only its own reader understands
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        model.load_state_dict(state)
        with torch.no_grad():
            return model(IDS).logits
    except Exception:  # it raises many types for values that it cannot use
        return None


def _ours(values: dict[str, Any], state: dict[str, Any]) -> torch.Tensor | None:
    try:
        config, vocab_size = read_config(values)
        with torch.device("meta"):
            model = GPT(config, vocab_size)
        state = _from_hugging_face(model, family_of(values), {**state})
        model = GPT(config, vocab_size)
        model.load_state_dict(state)
        with torch.no_grad():
            return model.eval()(IDS)[0]
    except UserError:
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_every_key_of_config_json_is_used_harmless_or_refused(family: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoConfig

    folder, state = family
    values = json.loads((folder / "config.json").read_text("utf-8"))
    defaults = AutoConfig.for_model(values["model_type"]).to_dict()
    wrong, equal = [], 0
    changes: Iterator[tuple[str, Any]] = (
        (key, other)
        for key in sorted(
            {*defaults, *values, *OTHERS}
            - {"model_type", "architectures", "vocab_size", "tie_word_embeddings"}
            - ODD.get(values["model_type"], set())
        )
        for other in [*_other_values(key, values.get(key, defaults.get(key))), ...]
    )
    for key, other in changes:
        changed = {**values, key: other}
        if other is ...:  # left out
            del changed[key]
        ours = _ours(changed, state)
        if ours is None:
            continue
        theirs = _theirs(changed, state)
        if theirs is None:
            continue
        equal += 1
        if not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
            wrong.append((key, other, float((ours - theirs).abs().max())))
    assert not wrong
    assert equal > 40


TOKENIZER_CHANGES: dict[str, list[tuple[str, Any]]] = {
    "tokenizer.json": [
        ("truncation", {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}),
        ("padding", {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<|endoftext|>"}),
        ("normalizer", {"type": "Lowercase"}),
        ("normalizer", {"type": "Prepend", "prepend": "_"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        ("post_processor", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}),
        ("post_processor", {"type": "TemplateProcessing", "pair": [], "special_tokens": {"<|endoftext|>": {
            "id": "<|endoftext|>", "ids": [500], "tokens": ["<|endoftext|>"]}}, "single": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]}),
        ("model.dropout", 0.5), ("model.unk_token", "<|endoftext|>"), ("model.fuse_unk", True),
        ("model.byte_fallback", True), ("model.ignore_merges", True), ("model.ignore_merges", False),
        ("model.continuing_subword_prefix", "x"), ("model.end_of_word_suffix", "x"), ("model.novelty", 1),
        ("novelty", 1),
        *((f"added_tokens.0.{flag}", True) for flag in ("single_word", "lstrip", "rstrip", "normalized")),
        ("added_tokens.0.special", False), ("added_tokens.0.novelty", True),
    ],
    "tokenizer_config.json": [
        ("add_bos_token", True), ("add_bos_token", False), ("add_eos_token", True), ("add_prefix_space", True),
        ("clean_up_tokenization_spaces", True), ("split_special_tokens", True), ("do_lower_case", True),
        ("bos_token", "<|im_end|>"), ("eos_token", {"content": "<|im_end|>", "__type": "AddedToken"}),
        ("bos_token", "<new>"), ("unk_token", "<|endoftext|>"), ("pad_token", None), ("model_max_length", 4),
        ("padding_side", "left"), ("truncation_side", "left"), ("legacy", True), ("errors", "strict"),
        ("additional_special_tokens", ["<|im_start|>"]), ("additional_special_tokens", ["<another>"]),
        ("extra_special_tokens", {"image_token": "<image>"}), ("novelty", 1),
        ("added_tokens_decoder", {"498": {"content": "<|im_start|>", "lstrip": True, "rstrip": False,
                                          "normalized": False, "single_word": False, "special": True}}),
        ("added_tokens_decoder", {"499": {"content": "<|im_start|>", "special": True}}),
        ("added_tokens_decoder", {"600": {"content": "<more>", "special": True}}),
        ("tokenizer_class", "PreTrainedTokenizerFast"), ("tokenizer_class", "TokenizersBackend"),
    ],
    "special_tokens_map.json": [
        ("bos_token", "<|im_end|>"), ("bos_token", "<new>"), ("additional_special_tokens", ["<|im_end|>"]),
        ("additional_special_tokens", ["<new>"]), ("novelty", "x"),
    ],
    "added_tokens.json": [("<|im_start|>", 498), ("<|im_start|>", 499), ("<new>", 600)],
}  # fmt: skip


def _changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    *way, last = path.split(".")
    inner: Any = values
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    return values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_every_key_of_the_tokenizer_files_is_used_harmless_or_refused(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(kiara.importing.tokenizers, "RANDOM_TEXTS", 5)
    make_folder(style, tmp_path, TEXTS)
    (tmp_path / "tokenizer.json").write_text(_with_fixed_ids(tmp_path / "tokenizer.json"), "utf-8")
    wrong, equal = [], 0
    for name, changes in TOKENIZER_CHANGES.items():
        path = tmp_path / name
        before = path.read_text("utf-8") if path.exists() else None
        for key, value in changes:
            path.write_text(json.dumps(_changed(json.loads(before or "{}"), key, value)), "utf-8")
            try:
                ours = read_tokenizer(tmp_path)
            except UserError:
                continue
            try:
                theirs = AutoTokenizer.from_pretrained(tmp_path)
            except Exception:  # a file that it cannot read
                continue
            texts = [text for text in hard_texts(ours) if "<|" not in text][:40]
            same = all(theirs.encode(t, add_special_tokens=False) == ours.encode(t) for t in texts)
            prefix = theirs.encode("a")[: len(theirs.encode("a")) - len(ours.encode("a"))] == ours.prompt_prefix
            equal += 1
            if not (same and prefix):
                wrong.append((name, key, value))
        if before is None:
            path.unlink()
        else:
            path.write_text(before, "utf-8")
    assert not wrong
    assert equal > 12


def _with_fixed_ids(path: Path) -> str:
    """The file's JSON with ids 498 to 500 for the three special tokens, as TOKENIZER_CHANGES expects."""
    values = json.loads(path.read_text("utf-8"))
    moved = {token["content"]: 498 + i for i, token in enumerate(values["added_tokens"])}
    for token in values["added_tokens"]:
        token["id"] = moved[token["content"]]
        values["model"]["vocab"].pop(token["content"], None)
    text = json.dumps(values)
    return text


def test_every_key_of_generation_config_json_is_handled() -> None:
    """Keys that would change greedy output are refused unless at a neutral value; recommended options are accepted."""
    from transformers import GenerationConfig

    defaults = GenerationConfig().to_dict()
    for key, value in defaults.items():
        check_keys("generation_config.json", {key: value}, GENERATION, GENERATION_FIXED)
    assert set(defaults) <= GENERATION | set(GENERATION_FIXED)
    assert set(RECOMMENDED) <= GENERATION
    changing = {
        "suppress_tokens": [5], "begin_suppress_tokens": [5], "bad_words_ids": [[5]], "forced_eos_token_id": 3,
        "min_length": 5, "min_new_tokens": 5, "no_repeat_ngram_size": 2, "num_beams": 4, "guidance_scale": 1.5,
        "sequence_bias": [[[5], 1.0]], "stop_strings": ["x"], "novelty": 1, "token_healing": True,
    }  # fmt: skip
    for key, value in changing.items():
        with pytest.raises(UserError, match=f"^generation_config.json: .*{key}"):
            check_keys("generation_config.json", {key: value}, GENERATION, GENERATION_FIXED)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_an_untied_lm_head_under_a_tied_config_is_kept_as_in_transformers(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from kiara.checkpoints.checkpoint import load_model

    make_folder(name, tmp_path / "theirs", TEXTS)
    weights = load_file(tmp_path / "theirs/model.safetensors")
    embedding = next(tensor for key, tensor in weights.items() if "embed_tokens" in key or "wte" in key)
    for head, tied in ((embedding + 1.0, False), (embedding.clone(), True)):
        save_file(
            {**weights, "lm_head.weight": head.contiguous()}, tmp_path / "theirs/model.safetensors", {"format": "pt"}
        )
        import_model(tmp_path / "theirs", tmp_path / "ours")
        ours, _ = load_model(tmp_path / "ours")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").float().eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(IDS)[0], theirs(IDS).logits, atol=1e-4, rtol=1e-4)
        assert ours.config.tie_word_embeddings is tied


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused_by_name(value: float, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from kiara.checkpoints.checkpoint import load_model

    make_folder("llama", tmp_path / "theirs", TEXTS)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "ours/trainer_state.json").unlink()  # else its hashes would reveal the change
    for folder in ("theirs", "ours"):
        weights = load_file(tmp_path / folder / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(weights, tmp_path / folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"model.layers.1.mlp.up_proj.weight: 1 of its 5,120 weights are NaN or infinite"
    ):
        import_model(tmp_path / "theirs", tmp_path / "again")
    with pytest.raises(UserError, match=r"are NaN or infinite"):
        load_model(tmp_path / "ours")
    assert not (tmp_path / "again").exists()


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gemma 3 270M": (
        {
            "model_type": "gemma3_text", "_sliding_window_pattern": 6, "attention_bias": False,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
            "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 18,
            "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
            "use_bidirectional_attention": False, "use_cache": True, "vocab_size": 262144,
        },
        {"sliding_rope_theta": 10000.0, "rope_theta": 1e6, "attention_scale": 0.0625, "logit_softcap": None},
    ),
    "Phi-3.5 mini": (
        {
            "model_type": "phi3", "attention_bias": False, "embd_pdrop": 0.0, "hidden_act": "silu",
            "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
        },
        {"context_length": 4096, "sliding_window": None, "rope_attention_factor": (1 + 5 / 12) ** 0.5},
    ),
    "Pythia 160M": (
        {
            "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 12,
            "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
            "use_parallel_residual": True, "vocab_size": 50304,
        },
        {"rotary_dim": 16, "rope_theta": 10000.0, "parallel": "two_norms", "attention_out_bias": True},
    ),
    "EXAONE 4 32B": (
        {
            "model_type": "exaone4", "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 27392, "max_position_embeddings": 131072, "num_attention_heads": 40,
            "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000,
            "rope_scaling": {
                "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
            "sliding_window": 4096, "sliding_window_pattern": "LLLG", "tie_word_embeddings": False,
            "vocab_size": 102400,
        },
        {"full_attention_rope": False, "sliding_window": 4096, "rope_scaling": "llama3"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_settings_of_published_models_are_read_and_written_back(name: str) -> None:
    values, expected = PUBLISHED[name]
    config, vocab_size = read_config(values)
    assert {field: getattr(config, field) for field in expected} == pytest.approx(expected)
    if config.layer_types is not None:
        every = {"Gemma 3 270M": 6}.get(name, 4)
        assert [config.slides(i) for i in range(2 * every)] == [(i + 1) % every != 0 for i in range(2 * every)]
    written = write_config(config, vocab_size, {})
    assert written["model_type"] == {"phi3": "llama"}.get(
        values["model_type"], values["model_type"]
    )  # without a window
    assert read_config(written)[0] == config


def test_models_that_cannot_be_imported_are_refused_with_what_comes_nearest() -> None:
    for kind, nearest in (("mixtral", "mistral"), ("mamba2", "llama"), ("gemma3", "gemma3_text"), ("bert", "arcee")):
        with pytest.raises(UserError) as caught:
            read_config({"model_type": kind})
        assert nearest in caught.value.remedy
