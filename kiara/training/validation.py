"""Validation: loss on held-out text, and a generated sample."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F

from kiara.data import ChatSplit, Dataset, Examples
from kiara.evaluation import (
    Predict,
    held_out_examples,
    predicted,
    reference_model,
    rows_at_once,
    tensors,
    window_length,
)
from kiara.model import GPT
from kiara.training.parallel import World
from kiara.training.preference import Preference
from kiara_runtime.verify import Metrics, Scorer

SAMPLES = 3  # held-out questions to answer
HELD_OUT_PROMPT = 16  # tokens of held-out text to continue


class Validation:
    """Loss on the validation split, computed by all processes together."""

    def __init__(self, model: GPT, dataset: Dataset, world: World, predict: Predict, length: int) -> None:
        """predict: token ids (B, S), and segments or None, to logits (B, S, V), on any device.

        length: of a training sequence, in tokens; conversations are cut and packed as in training.
        """
        self._model, self._dataset, self._world, self._predict = model, dataset, world, predict
        self._rows, self._length = rows_at_once(model), window_length(model)
        if isinstance(dataset.val, ChatSplit):
            self._length = min(self._length, length)

    @torch.inference_mode()
    def __call__(self, tokens: int | None) -> Metrics:
        """Evaluate about so many tokens, spread over the split, or all of it if None. Identical in every process."""
        scorer, device = Scorer(self._dataset.tokenizer), self._model.cos.device
        self._model.eval()
        for examples, counts in self._share(held_out_examples(self._dataset.val, self._length, tokens, self._rows)):
            found = list(predicted(self._predict, examples, device))
            for logits, targets in found if counts else ():
                scorer.add(logits, targets)
        self._model.train()
        scorer.totals = self._world.total(scorer.totals)
        return scorer.metrics()

    @torch.inference_mode()
    def preference(self, objective: Preference, tokens: int | None) -> tuple[float, float]:
        """The mean loss of held-out pairs, and the fraction whose chosen answer gains over the rejected one.

        Half a choice if both gain the same, as before the first step.
        """
        totals = [0.0, 0.0, 0.0]
        self._model.eval()
        for examples, counts in self._share(held_out_examples(self._dataset.val, self._length, tokens, self._rows)):
            ids, targets, _ = tensors(examples, self._model.cos.device)
            margins = objective.margins(ids, targets).float().cpu()
            right = (margins > 0).sum() + 0.5 * (margins == 0).sum()
            found = (-F.logsigmoid(margins).sum().item(), right.item(), len(margins)) if counts else (0.0, 0.0, 0.0)
            totals = [total + more for total, more in zip(totals, found, strict=True)]
        self._model.train()
        loss, right, pairs = self._world.total(totals)
        return loss / pairs, right / pairs

    def _share(self, batches: Iterator[Examples]) -> Iterator[tuple[Examples, bool]]:
        """This process's batches. All processes gather sharded weights in each pass, so one that has no batch left
        repeats another, which is not counted.
        """
        while group := list(islice(batches, self._world.size)):
            counts = self._world.rank < len(group)
            yield group[self._world.rank if counts else 0], counts


def sample(model: GPT, dataset: Dataset, prompt: str, tokens: int) -> str:
    """The prompt, or if it is empty the beginning of the held-out text, and its greedy continuation.

    Of conversations, some held-out questions and the answers to them.
    """
    written = reference_model(model, dataset.tokenizer, dataset.token_ids)
    if isinstance(dataset.val, ChatSplit):
        room = model.config.context_length - tokens
        asked = islice((ids for ids in dataset.val.questions() if len(ids) < room), SAMPLES)
        answers = ((ids, written.generate(ids, max_tokens=tokens, temperature=0.0).text) for ids in asked)
        return "\n".join(dataset.tokenizer.decode(ids) + answer for ids, answer in answers)
    if not prompt:
        ids = dataset.val.shards[0][: min(HELD_OUT_PROMPT, model.config.context_length // 2)].tolist()
        return dataset.tokenizer.decode(ids) + written.generate(ids, max_tokens=tokens, temperature=0.0).text
    return prompt + written.generate(prompt, max_tokens=tokens, temperature=0.0).text
