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
from kiara.families.registry import family_of, read_config
from kiara.importing.importer import import_model
from kiara.importing.tokenizers import hard_texts, read_tokenizer
from kiara.model.gpt import GPT
from kiara_runtime.errors import UserError

FAMILIES = ("arcee", "llama", "mistral", "qwen2", "qwen3", "gpt2")
TEXTS = ["some text to learn a few merges from, and the text of a test: def f(x): return x + 12345"] * 3
IDS = torch.randint(0, 300, (1, 64), generator=torch.Generator().manual_seed(1))
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
def test_every_key_of_config_json_is_used_harmless_or_refused(family: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoConfig

    folder, state = family
    values = json.loads((folder / "config.json").read_text("utf-8"))
    defaults = AutoConfig.for_model(values["model_type"]).to_dict()
    wrong, equal = [], 0
    changes: Iterator[tuple[str, Any]] = (
        (key, other)
        for key in sorted(
            {*defaults, *values, *OTHERS} - {"model_type", "architectures", "vocab_size", "tie_word_embeddings"}
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
