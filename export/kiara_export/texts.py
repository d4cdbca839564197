"""The texts of an export: to calibrate on, to choose matrices on, and to report on in the receipt."""

from __future__ import annotations

from pathlib import Path

from kiara.checkpoints import read_state, trained_on
from kiara.console import logger
from kiara.data import Split
from kiara.evaluation import held_out_text
from kiara_export.candidates import Order, Texts
from kiara_export.request import Request
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer

LEAST_TOKENS = 64  # to predict in each text
QUARTER, CALIBRATE = 0.25, 0.6  # fraction of --text used for calibration and choice; fraction of that for calibration


def texts_of(checkpoint: Path, tokenizer: Tokenizer, request: Request, orders: list[Order]) -> Texts:
    """The texts of a request, which by default do not overlap; raises UserError if one is too short."""
    texts = _found(checkpoint, tokenizer, request, orders)
    for option, split in (
        ("--text", texts.report),
        ("--calibration", texts.calibrate),
        ("--calibration", texts.choose),
    ):
        if split is not None and split.targets < LEAST_TOKENS:
            remedy = f"use text of at least {LEAST_TOKENS + 1} tokens"
            raise UserError(option, f"{split.tokens} tokens are too few", remedy)
    return texts


def _found(checkpoint: Path, tokenizer: Tokenizer, request: Request, orders: list[Order]) -> Texts:
    report = held_out_text(checkpoint, tokenizer, request.text)
    if not any(order.variant.calibrated for order in orders):
        cached = any(order.variant.int8_cache for order in orders)
        return _for_cache(checkpoint, report) if cached else Texts(report)
    if request.calibration is not None:
        tuning = held_out_text(checkpoint, tokenizer, request.calibration, "train")
    elif read_state(checkpoint).get("dataset") is not None:
        tuning = trained_on(checkpoint, "--calibration").train
    else:
        tuning, report = report.parted(QUARTER)
        logger.info("Calibrating on the first quarter of --text, judging on the rest; --calibration sets another text")
    if not any(order.variant.mixed for order in orders):
        return Texts(report, tuning)
    calibrate, choose = tuning.parted(CALIBRATE)
    return Texts(report, calibrate, choose)


def _for_cache(checkpoint: Path, report: Split) -> Texts:
    """The texts if only the int8 KV cache needs calibration, which is left out if there is too little text for it."""
    if read_state(checkpoint).get("dataset") is not None:
        try:
            return Texts(report, trained_on(checkpoint).train)
        except UserError:  # the folder is gone, and --text replaces its held-out text
            pass
    tuning, rest = report.parted(QUARTER)
    if min(tuning.targets, rest.targets) < LEAST_TOKENS:
        return Texts(report)
    logger.info("Calibrating the int8 KV cache on the first quarter of --text, judging on the rest")
    return Texts(rest, tuning)
