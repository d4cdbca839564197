"""Warnings from the curves of a run: a plateau, or overfitting."""

from __future__ import annotations

import statistics
from typing import Any

STALLED = 4  # validations without an improvement before a warning
PLATEAU = 0.001  # relative to the loss; a smaller gain is not an improvement
RISEN = 0.02  # relative to the best validation loss; overfitting that is plain at once


def stalled(records: list[dict[str, Any]]) -> int:
    """Number of validations since the last one that improved on the best loss by more than PLATEAU."""
    best, since = float("inf"), 0
    for record in records:
        if "val_loss" in record:
            better = record["val_loss"] < best * (1 - PLATEAU)
            since = 0 if better else since + 1
            best = min(best, record["val_loss"])
    return since


def advice(records: list[dict[str, Any]]) -> str | None:
    """A warning, or None; given when the loss first rises far, and at every STALLED-th validation without a gain."""
    since = stalled(records)
    if not since:
        return None
    validations = [record for record in records if "val_loss" in record]
    best = min(validations, key=lambda record: record["val_loss"])
    risen = [record["val_loss"] > best["val_loss"] * (1 + RISEN) for record in validations[-since:]]
    first_rise = risen[-1] and sum(risen) == 1
    if since % STALLED and not first_rise:
        return None
    then, now = (_training_loss(records, record["step"]) for record in (best, validations[-1]))
    count = f"{since} validations" if since > 1 else "a validation"
    where = f"no better validation loss than at step {best['step']} for {count}"
    if now is not None and then is not None and now < then * (1 - PLATEAU):
        return f"{where}, while the training loss fell: the model is overfitting; more text or a smaller model helps"
    return f"{where}: a plateau; a lower learning rate or training.patience to stop early helps"


def _training_loss(records: list[dict[str, Any]], step: int) -> float | None:
    """Mean training loss over the steps since the validation before `step`."""
    before = max((record["step"] for record in records if "val_loss" in record and record["step"] < step), default=0)
    losses = [record["loss"] for record in records if "loss" in record and before < record["step"] <= step]
    return statistics.fmean(losses) if losses else None
