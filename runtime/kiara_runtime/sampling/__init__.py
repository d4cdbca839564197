"""From logits to the next token: parameters and their checks, filters, the sampler, and grammars (`grammar`).

Functions of NumPy arrays, independent of where logits come from and of who requested the tokens.
"""

from typing import TYPE_CHECKING

from kiara_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kiara_runtime.sampling.checks import check_integer
    from kiara_runtime.sampling.filters import nats
    from kiara_runtime.sampling.grammar.constraint import Constraint, constrain
    from kiara_runtime.sampling.params import Sampling, SamplingParams, sampling_params
    from kiara_runtime.sampling.sampler import Sampler, TokenLogprob, token_logprob

__all__ = [
    "Constraint",
    "Sampler",
    "Sampling",
    "SamplingParams",
    "TokenLogprob",
    "check_integer",
    "constrain",
    "nats",
    "sampling_params",
    "token_logprob",
]

_HOMES = {
    "Constraint": "kiara_runtime.sampling.grammar.constraint",
    "Sampler": "kiara_runtime.sampling.sampler",
    "Sampling": "kiara_runtime.sampling.params",
    "SamplingParams": "kiara_runtime.sampling.params",
    "TokenLogprob": "kiara_runtime.sampling.sampler",
    "check_integer": "kiara_runtime.sampling.checks",
    "constrain": "kiara_runtime.sampling.grammar.constraint",
    "nats": "kiara_runtime.sampling.filters",
    "sampling_params": "kiara_runtime.sampling.params",
    "token_logprob": "kiara_runtime.sampling.sampler",
}
__getattr__ = lazy_names(__name__, _HOMES)
