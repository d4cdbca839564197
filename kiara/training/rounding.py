"""Quantisation-aware training: passes use weights on the grid of a variant, and the optimizer updates exact ones.

For int8-dynamic, passes round the activations that the projections read, too. For int4, passes use exact tables:
rounding them there gained nothing (docs/training.md). At validations and in checkpoints they are rounded so that errors
compensate each other.

The gradient at the rounded weights is applied to the exact ones (the straight-through estimator, Bengio et al. 2013).
Weights are rounded in place around a pass, so compiled code, gradient buckets and shards need no change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiara.data import Split
from kiara.evaluation import rows_at_once, window_length, windows
from kiara.grid import Grid
from kiara.model import GPT, Linear
from kiara.training.parallel import like, local, whole
from kiara_runtime.bundle import find_variant

_EXACT = "exact/"  # prefix of exact weights among the optimizers' tensors
_EXACT_TABLES = ("int4",)  # the variants whose tables stay exact in a pass
_TOKENS = 1 << 13  # of training text, on which errors of the tables are weighed


class Rounding:
    """Rounds the matrices of a model to a variant's grid, and restores them."""

    def __init__(self, model: GPT, name: str, text: Split | None = None) -> None:
        """name: of a variant with block-quantised weights. text: on which errors of the tables compensate each other;
        None rounds tables to the nearest.
        """
        variant = find_variant(name)
        assert variant is not None
        self.variant = name
        self.exact: dict[str, Tensor] = {}  # filled while the model's weights are rounded
        self._matrices = model.matrices()
        self._grids = {name: Grid.for_matrix(variant, name, weight.shape[1]) for name, weight in self._matrices.items()}
        self._model, self._text = model, text if name in _EXACT_TABLES else None
        dynamic = variant.rounding == "dynamic"
        self._projections = [part for part in model.layers.modules() if dynamic and isinstance(part, Linear)]

    @contextmanager
    def __call__(self, training: bool = False) -> Iterator[None]:
        """Round the weights until the block ends. training: for the passes of a step."""
        compensating = self._text is not None
        self.exact = {name: weight.detach().clone() for name, weight in self._matrices.items()}
        try:
            self._round([name for name in self._matrices if not compensating or name.startswith("layers.")])
            self._round_activations(True)
            if compensating and not training:
                self._round_tables()
            yield
        finally:
            self._round_activations(False)
            _set(self._matrices, self.exact)
            self.exact = {}

    @torch.no_grad()
    def _round(self, names: list[str]) -> None:
        """Round matrices to the nearest values of their grids."""
        for name in names:
            mine = local(self._matrices[name])
            mine.copy_(self._grids[name].nearest(mine))

    def _round_tables(self) -> None:
        """Round the tables so that the errors of a row compensate each other where the loss feels them most."""
        head, embedding = self._curvatures()
        tied = self._model.lm_head is None
        with torch.no_grad():
            for name in (name for name in self._matrices if not name.startswith("layers.")):
                mine = local(self._matrices[name])
                curvature = head + embedding if tied else head if name.startswith("lm_head") else embedding
                mine.copy_(self._grids[name].compensated(mine, curvature))

    @torch.enable_grad()
    def _curvatures(self) -> tuple[Tensor, Tensor]:
        """Curvature of the loss by an error in a row of the head, and of the embedding, (D, D), per use of the token.

        Estimated by products of gradients (the empirical Fisher information). The same in all processes.
        """
        assert self._text is not None
        model, width = self._model, self._model.config.hidden_size
        head, embedding = (torch.zeros(width, width, device=model.cos.device) for _ in range(2))
        kept: list[Tensor] = []  # of a pass: the embedded tokens, and what the head reads

        def keep(module: nn.Module, inputs: object, output: Any) -> None:
            kept.append(output if isinstance(output, Tensor) else output[0])

        hooks = [module.register_forward_hook(keep) for module in (model.embed_tokens, model.norm)]
        try:
            for batch in windows(self._text, window_length(model), _TOKENS, rows_at_once(model)):
                ids = batch.to(head.device)
                kept.clear()
                logits = model.predict(ids[:, :-1])
                loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
                slopes, embedded = (part.flatten(0, 1).float() for part in torch.autograd.grad(loss, (logits, kept[0])))
                read = kept[1].detach().flatten(0, 1).float() * slopes.norm(dim=1, keepdim=True)
                head += read.T @ read
                embedding += embedded.T @ embedded
        finally:
            for hook in hooks:
                hook.remove()
        return head * model.config.logit_scale**2, embedding

    def _round_activations(self, rounded: bool) -> None:
        for projection in self._projections:
            projection.rounded = rounded


def exact_tensors(rounding: Rounding | None) -> dict[str, Tensor]:
    """The exact weights to save beside rounded ones, by name; none if the weights are not rounded at the moment."""
    return {f"{_EXACT}{name}": whole(weight).cpu() for name, weight in rounding.exact.items()} if rounding else {}


def load_exact(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Restore the exact weights that `exact_tensors` saved, if any."""
    exact = {name.removeprefix(_EXACT): tensor for name, tensor in tensors.items() if name.startswith(_EXACT)}
    _set({name: weight for name, weight in model.matrices().items() if name in exact}, exact)


@torch.no_grad()
def _set(matrices: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in matrices.items():
        weight.copy_(like(values[name], weight))
