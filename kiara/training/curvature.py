"""How much an error in a row of each matrix costs, estimated on training text, to round weights by it.

Shape letters: D inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiara.compensation import adding_moments
from kiara.data import Split
from kiara.evaluation import rows_at_once, window_length, windows
from kiara.model import GPT, Linear

MOST, LEAST = 1 << 15, 1 << 13  # tokens of training text
SHARE = 32  # of the run's tokens, one in so many


def tokens_for(run_tokens: int) -> int:
    """Tokens to estimate from in a run of so many: few enough that short runs do not spend their time on it."""
    return min(MOST, max(LEAST, run_tokens // SHARE))


@torch.enable_grad()
def curvatures(
    model: GPT, text: Split, tokens: int = MOST, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> dict[str, Tensor]:
    """By name of a matrix, float32 (D, D) each. The same in all processes. autocast: of the passes.

    Of a projection, the second moments of its inputs. Of the tables, the curvature of the loss by an error in a row,
    estimated by products of gradients (the empirical Fisher information); a tied table has that of both uses.
    """
    found = {name: torch.zeros(w.shape[1], w.shape[1], device=model.cos.device) for name, w in model.matrices().items()}
    kept: list[Tensor] = []  # of a pass: the embedded tokens, and what the head reads

    def keep(module: nn.Module, inputs: object, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    hooks = [module.register_forward_hook(keep) for module in (model.embed_tokens, model.norm)]
    for name, part in model.layers.named_modules(prefix="layers"):
        if isinstance(part, Linear):
            hooks.append(part.register_forward_pre_hook(adding_moments(found[f"{name}.weight"])))
    head = "embed_tokens.weight" if model.lm_head is None else "lm_head.weight"
    try:
        for batch in windows(text, window_length(model), tokens, rows_at_once(model)):
            ids = batch.to(model.cos.device)
            kept.clear()
            with autocast():
                logits = model.predict(ids[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            slopes, embedded = (part.flatten(0, 1).float() for part in torch.autograd.grad(loss, (logits, kept[0])))
            scale = slopes.norm(dim=1, keepdim=True) * model.config.logit_scale
            read = kept[1].detach().flatten(0, 1).float() * scale
            found[head].addmm_(read.T, read)
            found["embed_tokens.weight"].addmm_(embedded.T, embedded)
    finally:
        for hook in hooks:
            hook.remove()
    return found
