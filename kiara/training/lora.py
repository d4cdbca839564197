"""Low-rank adapters (LoRA, Hu et al. 2021) on every linear layer of the blocks.

Own code and not `peft`, because q, k, v and gate, up are packed in one matrix here: each keeps an adapter of its own,
as in the unpacked model, so the files are peft's. The frozen weights keep their names, and `merged` gives an ordinary
model.

Shape letters: r rank, n matrices packed in one, in and out the widths of that one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiara.config import AdaptConfig
from kiara.families import Family, family_of, tensor_names, write_config
from kiara.model import GPT, Linear
from kiara_runtime.errors import UserError

_PREFIX = "base_model.model."  # of all names in peft's files


class LoRALinear(Linear):
    """W x + b + scale * B A x.

    lora_A: (n * r, in). lora_B: (out, r), the rows of each packed matrix for its own r rows of lora_A.
    """

    def __init__(self, base: Linear, rows: list[int], config: AdaptConfig) -> None:
        """rows: of each packed matrix."""
        assert config.rank is not None
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rows, self.rank, self.scale = rows, config.rank, config.scale
        self.dropout = nn.Dropout(config.dropout)
        self.lora_A = nn.Parameter(torch.empty(len(rows) * self.rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, self.rank))

    def forward(self, input: Tensor) -> Tensor:
        inner = F.linear(self.dropout(input), self.lora_A).split(self.rank, dim=-1)
        parts = [F.linear(x, B) for x, B in zip(inner, self.lora_B.split(self.rows), strict=True)]
        return super().forward(input) + self.scale * torch.cat(parts, dim=-1)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight with the adapter added, (out, in)."""
        pairs = zip(self.lora_B.split(self.rows), self.lora_A.split(self.rank), strict=True)
        return self.weight + self.scale * torch.cat([B @ A for B, A in pairs])


def add_lora(model: GPT, config: AdaptConfig, seed: int) -> None:
    """Freeze the model and give every linear layer of its blocks an adapter that changes nothing yet."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in [*model.named_modules()]:
        if isinstance(module, Linear) and name.startswith("layers."):
            parts = tensor_names(_family(model), model.config, f"{name}.weight").values()
            adapted = LoRALinear(module, [rows or module.out_features for rows in parts], config)
            bound = module.in_features**-0.5  # as peft does
            nn.init.uniform_(adapted.lora_A, -bound, bound, generator=generator)
            model.set_submodule(name, adapted)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout in a step of one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def adapters(model: GPT) -> dict[str, LoRALinear]:
    """The adapted layers, by name; none if all weights are trained."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def merged(model: GPT) -> GPT:
    """An ordinary model with the adapters added to its weights; the model itself if it has none."""
    adapted = adapters(model)
    if not adapted:
        return model
    state = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    state |= {f"{name}.weight": layer.merged() for name, layer in adapted.items()}
    with torch.device("meta"):
        copy = GPT(model.config, model.vocab_size)
    copy.load_state_dict(state, assign=True)
    copy.make_tables(model.cos.device)
    return copy.eval()


def adapter_tensors(model: GPT) -> dict[str, Tensor]:
    """The adapters under peft's names, float32; those of packed matrices one by one."""
    return {name: part.detach().cpu().contiguous() for name, part in _named_parts(model).items()}


@torch.no_grad()
def load_adapters(model: GPT, tensors: dict[str, Tensor]) -> None:
    """Set the adapters from `adapter_tensors`; raises UserError if they are of another shape."""
    for name, part in _named_parts(model).items():
        if name not in tensors or tensors[name].shape != part.shape:
            raise UserError("adapter", f"{name} is missing or has the wrong shape", "resume from another checkpoint")
        part.copy_(tensors[name])


def adapter_config(model: GPT, config: AdaptConfig, base: str) -> dict[str, Any]:
    """peft's adapter_config.json. base: where the model that was adapted lies."""
    modules = {name.rpartition(".lora_")[0] for name in _named_parts(model)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.scale * (config.rank or 1),
        "lora_dropout": config.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "fan_in_fan_out": _family(model).transposed,
        "bias": "none",
        "inference_mode": True,
    }


def _named_parts(model: GPT) -> dict[str, Tensor]:
    """Views of the adapters by peft's names."""
    found: dict[str, Tensor] = {}
    for name, layer in adapters(model).items():
        theirs = tensor_names(_family(model), model.config, f"{name}.weight")
        for part, A, B in zip(theirs, layer.lora_A.split(layer.rank), layer.lora_B.split(layer.rows), strict=True):
            module = _PREFIX + part.removesuffix(".weight")
            found |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    return found


def _family(model: GPT) -> Family:
    return family_of(write_config(model.config, model.vocab_size, {}))
