"""Learning preferences: direct preference optimisation (DPO, Rafailov et al. 2023).

A model learns to raise the probability of chosen answers over that of rejected ones, relative to a reference: the
checkpoint that it started from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiara.model import GPT


class Preference(nn.Module):
    """The mean loss of pairs: -log sigmoid(beta * (margin of the model - margin of the reference)).

    A margin is the log-probability of the chosen answer less that of the rejected one.
    """

    def __init__(self, model: GPT, reference: GPT, beta: float) -> None:
        super().__init__()
        self.model, self._beta = model, beta
        self._reference = (reference.requires_grad_(False).eval(),)  # in a tuple, as it is not a part of this module

    def forward(self, ids_BS: Tensor, targets_BS: Tensor, segments_BS: Tensor | None = None) -> Tensor:
        """The rows are the chosen conversations, then the rejected ones in the same order. segments_BS: not used."""
        return -F.logsigmoid(self.margins(ids_BS, targets_BS)).mean()

    def margins(self, ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """beta * (margin of the model - margin of the reference), (B / 2,); above 0 where the choice is learned."""
        with torch.no_grad():
            before = log_probabilities(self._reference[0], ids_BS, targets_BS)
        chosen, rejected = (log_probabilities(self.model, ids_BS, targets_BS) - before).chunk(2)
        return self._beta * (chosen - rejected)


def log_probabilities(model: GPT, ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
    """The log-probability of each row's targets that count, (B,)."""
    logits = model.predict(ids_BS).float()
    return -F.cross_entropy(logits.transpose(1, 2), targets_BS, reduction="none").sum(-1)
