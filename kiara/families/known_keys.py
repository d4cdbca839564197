"""Known keys of imported files: each key is used, known to have no effect here, or refused by name.

An unsupported key that would change the model's output must not be ignored. `transformers` itself ignores keys that a
class does not know; a file with such a key was made for other code, so here it is refused with a remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kiara_runtime.errors import UserError

# config.json: keys about training, other heads, how `transformers` computes, and provenance, or read elsewhere.
CONFIG = frozenset(
    "architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path _commit_hash auto_map "
    "initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout use_cache "
    "output_attentions output_hidden_states return_dict return_dict_in_generate output_scores torchscript "
    "use_bfloat16 chunk_size_feed_forward gradient_checkpointing id2label label2id num_labels problem_type "
    "classifier_dropout finetuning_task task_specific_params tokenizer_class prefix pruned_heads pretraining_tp "
    "max_window_layers reorder_and_upcast_attn summary_type summary_use_proj summary_activation "
    "summary_proj_to_labels summary_first_dropout n_ctx is_decoder is_llama_config rope_interleaved "
    "transformers.js_config unsloth_version unsloth_fixed _attn_implementation attn_implementation "
    "_attn_implementation_autoset bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id "
    "vocab_size cache_implementation sliding_window_size".split()
)
# config.json: keys that could mean another computation, with the values that do not.
CONFIG_FIXED: dict[str, tuple[Any, ...]] = {
    "rope_interleaved": (False, None),
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "quantization_config": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_qk_norm": (False, None),
    "use_sliding_window": (False, None),
    "lm_head_bias": (False, None),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "apply_residual_connection_post_layernorm": (False, None),
}

# generation_config.json: sampling settings are not imported; each request gives its own.
GENERATION = frozenset(
    "_from_model_config transformers_version bos_token_id eos_token_id pad_token_id decoder_start_token_id do_sample "
    "temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty max_length "
    "max_new_tokens max_time use_cache cache_implementation cache_config max_cache_len return_legacy_cache "
    "compile_config disable_compile num_return_sequences output_attentions output_hidden_states output_scores "
    "output_logits return_dict_in_generate chat_format prefill_chunk_size low_memory use_mtp speculation_type "
    "assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind "
    "target_lookbehind is_assistant num_assistant_tokens num_assistant_tokens_schedule prompt_lookup_num_tokens "
    "max_matching_ngram_size continuous_batching_config remove_invalid_values renormalize_logits length_penalty "
    "early_stopping".split()
)
RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
# Keys that forbid or force tokens, or search: the values that do nothing.
GENERATION_FIXED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        "suppress_tokens begin_suppress_tokens bad_words_ids sequence_bias force_words_ids constraints "
        "stop_strings forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty "
        "watermarking_config dola_layers penalty_alpha".split(),
        (None, [], {}),
    ),
    **dict.fromkeys("min_length min_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size".split(), (None, 0)),
    **dict.fromkeys("num_beams num_beam_groups encoder_repetition_penalty guidance_scale".split(), (None, 1)),
    "diversity_penalty": (None, 0),
    "token_healing": (None, False),
}

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
# tokenizer_config.json. Token ids depend on tokenizer.json only. The tokenizer class is ignored: some classes of
# `transformers` 5 split text by their own rules, and SmolLM2 names such a class but was not trained with it.
TOKENIZER_CONFIG = frozenset(
    (*SPECIAL_TOKENS, *"""
    chat_template model_max_length max_length tokenizer_class add_bos_token added_tokens_decoder
    additional_special_tokens extra_special_tokens model_specific_special_tokens clean_up_tokenization_spaces
    spaces_between_special_tokens errors legacy use_default_system_prompt padding_side truncation_side
    pad_to_multiple_of pad_token_type_id stride truncation_strategy model_input_names processor_class auto_map
    name_or_path
    special_tokens_map_file tokenizer_file vocab_file merges_file is_local local_files_only backend
    return_token_type_ids sp_model_kwargs trust_remote_code use_fast transformers_version response_schema unk_id
    from_slow
    kiara_engine kiara_prompt_prefix
    """.split())
)  # fmt: skip
TOKENIZER_CONFIG_FIXED: dict[str, tuple[Any, ...]] = {
    "add_eos_token": (False, None),
    "add_prefix_space": (False, None),
    "do_lower_case": (False, None),
    "strip_accents": (False, None),
    "split_special_tokens": (False, None),
}
SPECIAL_TOKENS_MAP = frozenset((*SPECIAL_TOKENS, "additional_special_tokens", "extra_special_tokens"))

# tokenizer.json: keys at the top, and keys of `model`.
TOKENIZER = frozenset(
    "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model".split()
)
BPE = frozenset("type unk_token fuse_unk ignore_merges vocab merges".split())
SENTENCEPIECE = {"BPE": BPE | {"byte_fallback"}, "Unigram": frozenset("type unk_id vocab byte_fallback".split())}
BPE_FIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False, None),
}

# GGUF: keys that are used, that describe the file, or that do not affect logits.
GGUF = frozenset(
    "general.architecture tokenizer.ggml.model tokenizer.ggml.pre tokenizer.ggml.tokens tokenizer.ggml.token_type "
    "tokenizer.ggml.scores tokenizer.ggml.merges tokenizer.ggml.bos_token_id "
    "tokenizer.ggml.eos_token_id tokenizer.ggml.eot_token_id tokenizer.ggml.eom_token_id "
    "tokenizer.ggml.unknown_token_id tokenizer.ggml.padding_token_id tokenizer.ggml.seperator_token_id "
    "tokenizer.ggml.mask_token_id tokenizer.ggml.cls_token_id tokenizer.ggml.add_bos_token "
    "tokenizer.ggml.fim_pre_token_id tokenizer.ggml.fim_suf_token_id tokenizer.ggml.fim_mid_token_id "
    "tokenizer.ggml.fim_pad_token_id tokenizer.ggml.fim_rep_token_id tokenizer.ggml.fim_sep_token_id "
    "tokenizer.ggml.prefix_token_id tokenizer.ggml.suffix_token_id tokenizer.ggml.middle_token_id "
    "tokenizer.ggml.add_space_prefix tokenizer.chat_template tokenizer.chat_templates tokenizer.huggingface.json "
    "split.no split.count split.tensors.count".split()
)
GGUF_PREFIXES = ("general.", "quantize.", "tokenizer.chat_template.", "GGUF.", "imatrix.", "mradermacher.", "prompt.")
GGUF_FIXED: dict[str, tuple[Any, ...]] = {
    "tokenizer.ggml.add_eos_token": (False,),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
    "tokenizer.ggml.suppress_tokens": ([],),
}
# The same, of keys that follow the architecture's name.
GGUF_ARCHITECTURE_FIXED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
}


def check_keys(
    file: str,
    values: Mapping[str, Any],
    known: Iterable[str],
    fixed: Mapping[str, tuple[Any, ...]],
    may: Callable[[str], bool] = lambda key: False,
) -> None:
    """Refuse the first key that is neither known nor in `fixed` with one of its values there, which do nothing.

    may: whether a key not in `known` is accepted, too.
    """
    known = set(known)
    for key, value in values.items():
        if key in known or may(key):
            continue
        if key not in fixed:
            raise UserError(
                file, f"the key {key} (here {value!r:.40}) is not known", "delete it if the model does not need it"
            )
        if value not in fixed[key]:
            wanted = f"only {fixed[key][0]!r} is" if fixed[key] else "use the whole model in one file"
            raise UserError(file, f"{key} {value!r:.60} is not supported", wanted)
