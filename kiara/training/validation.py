"""Validation: loss on held-out text, and a generated sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from kiara.data import Dataset
from kiara.evaluation import reference_model, rows_at_once, window_length, windows
from kiara.model import GPT
from kiara.training.parallel import World
from kiara_runtime.verify import Metrics, Scorer


class Validation:
    """Loss on the validation split, computed by all processes together."""

    def __init__(self, model: GPT, dataset: Dataset, world: World, predict: Callable[[Tensor], Tensor]) -> None:
        """predict: token ids (B, S) to logits (B, S, V), on any device."""
        self._model, self._dataset, self._world, self._predict = model, dataset, world, predict

    @torch.inference_mode()
    def __call__(self, tokens: int | None) -> Metrics:
        """Evaluate about so many tokens, spread over the split, or all of it if None. Identical in every process."""
        length, rows = window_length(self._model), rows_at_once(self._model)
        scorer = Scorer(self._dataset.tokenizer)
        self._model.eval()
        for batch, counts in self._share(windows(self._dataset.val, length, tokens, rows)):
            logits = self._predict(batch[:, :-1]).float().cpu().numpy()
            for row, following in zip(logits, batch[:, 1:].numpy(), strict=True) if counts else ():
                scorer.add(row, following)
        self._model.train()
        scorer.totals = self._world.total(scorer.totals)
        return scorer.metrics()

    def _share(self, batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        """This process's batches. All processes gather sharded weights in each pass, so one that has no batch left
        repeats another, which is not counted.
        """
        while group := list(islice(batches, self._world.size)):
            counts = self._world.rank < len(group)
            yield group[self._world.rank if counts else 0], counts


def sample(model: GPT, dataset: Dataset, prompt: str, tokens: int) -> str:
    """The prompt and its greedy continuation."""
    written = reference_model(model, dataset.tokenizer, dataset.token_ids)
    return prompt + written.generate(prompt, max_tokens=tokens, temperature=0.0).text
