"""The texts of an export: what rounding learns from, what it chooses by, and what the receipt reports on."""

from __future__ import annotations

from pathlib import Path

from kiara.checkpoints import read_state, trained_on
from kiara.console import logger
from kiara.evaluation import held_out_text
from kiara_export.candidates import Order, Texts
from kiara_export.request import Request
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer

LEAST_TOKENS = 64  # to predict, of each text
QUARTER, CALIBRATE = 0.25, 0.6  # of held-out text that is taken to learn from; of that, what calibrates


def texts_of(checkpoint: Path, tokenizer: Tokenizer, request: Request, orders: list[Order]) -> Texts:
    """The texts of a request, of which by default none is part of another; raises UserError where one is too short."""
    texts = _found(checkpoint, tokenizer, request, orders)
    for option, split in (
        ("--text", texts.report),
        ("--calibration", texts.calibrate),
        ("--calibration", texts.choose),
    ):
        if split is not None and split.targets < LEAST_TOKENS:
            remedy = f"name text of {LEAST_TOKENS + 1} at least"
            raise UserError(option, f"{split.tokens} tokens are too few", remedy)
    return texts


def _found(checkpoint: Path, tokenizer: Tokenizer, request: Request, orders: list[Order]) -> Texts:
    report = held_out_text(checkpoint, tokenizer, request.text)
    if not any(order.variant.calibrated for order in orders):
        return Texts(report)
    if request.calibration is not None:
        learned = held_out_text(checkpoint, tokenizer, request.calibration)
    elif read_state(checkpoint).get("dataset") is not None:
        learned = trained_on(checkpoint, "--calibration").train
    else:
        learned, report = report.parted(QUARTER)
        logger.info("Calibrated on the first quarter of --text and judged on the rest; --calibration names other text")
    if not any(order.variant.mixed for order in orders):
        return Texts(report, learned)
    calibrate, choose = learned.parted(CALIBRATE)
    return Texts(report, calibrate, choose)
