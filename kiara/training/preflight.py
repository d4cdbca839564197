"""Checks before the first step: refuse invalid settings and text, and report what will be trained and shipped."""

from __future__ import annotations

import regex

from kiara.config import Config
from kiara.console import logger
from kiara.data import ChatSplit, Dataset, PairSplit
from kiara.model import GPT, sizes
from kiara.training.device import check_device
from kiara_runtime.bundle import VARIANTS, find_variant
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import SPLIT_PATTERN, check_text

MOST_EPOCHS = 4  # repeats up to here teach about as much as new text (Muennighoff et al. 2023, arXiv:2305.16264)
SHOWN = [variant for variant in VARIANTS if variant.name in ("int8", "int4")]  # whose sizes are logged


def check_settings(config: Config) -> None:
    """Raise UserError for invalid settings, as far as they can be checked without the data."""
    training, length = config.training, config.model.context_length
    check_device(training.device, training.compile)
    try:
        check_text(training.sample_prompt).encode()
    except ValueError as error:  # includes lone surrogates
        raise UserError("training.sample_prompt", f"cannot be encoded ({error})", "choose another") from None
    if training.init_from is not None:  # its tokenizer splits the prompt in another way
        return
    least = sum(1 for _ in regex.finditer(SPLIT_PATTERN, training.sample_prompt))
    if training.sample_tokens and least >= length:
        raise UserError("training.sample_prompt", f"leaves no room in model.context_length ({length})", "shorten it")


def check_text_fits(config: Config, dataset: Dataset) -> None:
    """Raise UserError if the text is too short for the context, or the sample's prompt fills it."""
    training, length = config.training, config.model.context_length
    dataset.train.sequences(config.sequence_length)
    if not dataset.val.targets:
        raise UserError("data.val", "the validation split has no token to predict", "hold out more text")
    prompt = dataset.tokenizer.encode(training.sample_prompt) if training.sample_tokens else []
    if len(prompt) >= length:
        raise UserError("training.sample_prompt", f"leaves no room in model.context_length ({length})", "shorten it")


def _announce_packing(split: ChatSplit, length: int) -> None:
    packing = split.packed(length)
    kept, count = sum(map(len, packing.windows)), len(packing.windows)
    what = "pairs" if isinstance(split, PairSplit) else "conversations"
    if isinstance(split, PairSplit):
        logger.info("%s pairs of a chosen and a rejected answer, of at most %d tokens each.", f"{count:,}", length)
    else:
        logger.info("%s conversations are packed into %s sequences of %d tokens.", f"{kept:,}", f"{count:,}", length)
    for number, done in ((packing.cut, "cut"), (packing.dropped, "left out")):
        if number:
            told = f"{number:,} {what} are longer than {length} tokens, or have no answer within them: {done}."
            logger.warning("%s", told)


def announce(config: Config, gpt: GPT, dataset: Dataset, machine: str) -> None:
    """Log the sizes of the model and its bundle, the data and the device."""
    model, vocab, training = config.model, gpt.vocab_size, config.training
    trained_for = find_variant(training.quantize)
    shown = SHOWN if trained_for is None else [trained_for]
    bundles = (f"{sizes.graph_bytes(model, vocab, v, trained_for is not None) / 1e6:.1f} MB at {v.name}" for v in shown)
    logger.info(
        "Model: %.2fM parameters; bundle %s; KV cache %.1f KB per token; context %d.",
        sizes.parameters(model, vocab) / 1e6,
        ", ".join(bundles),
        sizes.cache_bytes_per_token(model) / 1e3,
        model.context_length,
    )
    if config.adapt.rank is not None:
        trained = sum(weight.numel() for weight in gpt.parameters() if weight.requires_grad)
        logger.info(
            "Adapters of rank %d: %.2fM weights are trained, the others frozen.", config.adapt.rank, trained / 1e6
        )
    if trained_for is not None:
        begins = round(training.quantize_from * training.max_steps)
        what = "Weights and activations" if trained_for.rounding == "dynamic" else "Weights"
        logger.info(
            "%s are rounded to %s from step %d on; the export rounds no weight.", what, trained_for.name, begins
        )
    if isinstance(dataset.train, ChatSplit):
        _announce_packing(dataset.train, config.sequence_length)
    step_tokens = training.sequences * config.sequence_length
    logger.info(
        "Data: %s, %s training and %s validation tokens; %d steps of %s tokens are %.2f epochs.",
        dataset.folder,
        f"{dataset.train.tokens:,}",
        f"{dataset.val.tokens:,}",
        training.max_steps,
        f"{step_tokens:,}",
        training.max_steps * step_tokens / dataset.train.tokens,
    )
    enough = max(1, round(MOST_EPOCHS * dataset.train.tokens / step_tokens))
    if training.init_from is None and training.max_steps > 2 * enough:
        logger.warning(
            "The text is read %.0f times; from about the fifth time on it is mostly learned by heart. Give more text, "
            "or set training.max_steps to about %d.",
            training.max_steps * step_tokens / dataset.train.tokens,
            enough,
        )
    logger.info("Machine: %s.", machine)
