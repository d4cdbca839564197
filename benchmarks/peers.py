"""How each runtime of `side_by_side.py` loads a model and goes through a prompt, as fast as it knows.

A runner takes a path and options and returns a function from prompt ids to the seconds until the first token, the
seconds from there to the end, and all NEW + 1 greedy tokens.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, NEW, THREADS = 256, 128, 2

Timed = tuple[float, float, list[int]]
Once = Callable[[list[int]], Timed]


def walk(prompt: list[int], following: Callable[[list[int]], int]) -> Timed:
    """Time `following`, from the tokens not seen yet to the likeliest next one."""
    times = [time.perf_counter()]
    tokens = [following(prompt)]
    times.append(time.perf_counter())
    for _ in range(NEW):
        tokens.append(following(tokens[-1:]))
    times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1], tokens


def kiara(path: str, variant: str, **options: Any) -> Once:
    import kiara_runtime

    model = kiara_runtime.load(path, variant=variant, threads=THREADS)

    def once(prompt: list[int]) -> Timed:
        done = model.generate(prompt, max_tokens=NEW + 1, temperature=0.0, ignore_eos=True, **options)
        return done.prefill_seconds, done.decode_seconds, done.tokens

    return once


def genai(path: str) -> Once:
    import onnxruntime_genai as og

    config = og.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": THREADS}}}}))
    model = og.Model(config)

    def once(prompt: list[int]) -> Timed:
        params, length = og.GeneratorParams(model), len(prompt) + NEW + 1
        params.set_search_options(max_length=length, min_length=length, do_sample=False)  # min: no end of text before
        generator = og.Generator(model, params)

        def following(tokens: list[int]) -> int:
            if len(tokens) > 1:  # what it chose itself, it has
                generator.append_tokens(tokens)
            generator.generate_next_token()
            return int(generator.get_next_tokens()[0])

        return walk(prompt, following)

    return once


def llama_cpp(path: str, flash_attention: bool = True) -> Once:
    """By the C functions: `Llama.generate` copies and samples in Python."""
    import llama_cpp as c

    quiet = c.llama_log_callback(lambda level, text, data: None)
    c.llama_log_set(quiet, None)
    c.llama_backend_init()
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = THREADS
    settings.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = c.llama_init_from_model(model, settings)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def following(tokens: list[int]) -> int:
        given = (c.llama_token * len(tokens))(*tokens)
        if c.llama_decode(context, c.llama_batch_get_one(given, len(tokens))):
            raise RuntimeError("llama_decode failed")
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (vocabulary,)).argmax())

    def once(prompt: list[int]) -> Timed:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        return walk(prompt, following)

    once.quiet = quiet  # llama.cpp calls it to the end
    return once


def ctranslate2(path: str) -> Once:
    import ctranslate2 as c

    generator = c.Generator(path, device="cpu", compute_type="int8", inter_threads=1, intra_threads=THREADS)
    names = json.loads(Path(path, "vocabulary.json").read_text("utf-8"))

    def once(prompt: list[int]) -> Timed:
        words, tokens = [[names[token] for token in prompt]], []
        times = [time.perf_counter()]
        for length in (1, NEW + 1):  # min_length: no end of text; prompt not in the result: read in one pass
            found = generator.generate_batch(
                words, max_length=length, min_length=length, include_prompt_in_result=False
            )
            tokens = found[0].sequences_ids[0]
            times.append(time.perf_counter())
        prefill, whole = times[1] - times[0], times[2] - times[1]
        return prefill, whole - prefill, tokens

    return once


def transformers(path: str) -> Once:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def once(prompt: list[int]) -> Timed:
        cache = DynamicCache(config=model.config)

        def following(tokens: list[int]) -> int:
            return int(model(torch.tensor([tokens]), past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax())

        return walk(prompt, following)

    return once


RUNNERS: dict[str, tuple[Callable[..., Once], str, tuple[str, ...]]] = {  # with the first module and distributions
    "kiara": (kiara, "kiara_runtime", ("kiara-runtime", "onnxruntime")),
    "genai": (genai, "onnxruntime_genai", ("onnxruntime-genai",)),
    "llama.cpp": (llama_cpp, "llama_cpp", ("llama-cpp-python",)),
    "ctranslate2": (ctranslate2, "ctranslate2", ("ctranslate2",)),
    "transformers": (transformers, "transformers.models.llama.modeling_llama", ("transformers", "torch")),
}
