"""The receipt: measurements of a bundle, as JSON and as the tables and plot of its model card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kiara.evaluation import Metrics
from kiara_export.candidates import Int8Cache
from kiara_export.proof import QUANTILES, Agreement, Quality
from kiara_runtime.bundle import Variant
from kiara_runtime.verify import Speed

PLOT = "receipt.png"


@dataclass(frozen=True)
class Sample:
    """A text that the default variant writes. The prompt is the beginning of the held-out text."""

    variant: str
    prompt: str
    text: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class Receipt:
    """Measurements of a bundle. parameters: number of trained weights. sizes: bytes of each variant's graph.

    qualities: of the variants other than fp32. caches: of those with an int8 KV cache. eight_bit_matrices: matrices of
    int4 that keep 8 bits. finer: how often each remade variant was remade. left_out: variants that failed a limit, with
    the reason. speeds: on `machine`. runtimes: greedy tokens in other runtimes compared. probe: token ids of held-out
    text and what each variant computes from them here, for `kiara-run verify --deep` to compare. data: documents, bytes
    and tokens that it was trained on, if known. sample: what the default variant writes, with the prompt. licences:
    names of its licence files.
    """

    name: str
    parameters: int
    context_length: int
    sizes: dict[Variant, int]
    eight_bit_matrices: list[str]
    float32: Metrics
    agreements: list[Agreement]
    qualities: dict[Variant, Quality]
    caches: dict[Variant, Int8Cache]
    machine: dict[str, Any]
    probe: dict[str, Any]
    provenance: dict[str, Any]
    finer: dict[str, int] = field(default_factory=dict[str, int])
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    speeds: dict[Variant, Speed] = field(default_factory=dict[Variant, Speed])
    runtimes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    data: dict[str, Any] | None = None
    sample: Sample | None = None
    licences: tuple[str, ...] = ()

    def figures(self) -> dict[str, dict[str, Any]]:
        """The figures of each variant, by name."""
        return {variant.name: self._figures_of(variant) for variant in self.sizes}

    def _figures_of(self, variant: Variant) -> dict[str, Any]:
        quality = self.qualities.get(variant)
        metrics = quality.metrics if quality else self.float32
        return {
            "size_bytes": self.sizes[variant],
            "bytes_per_parameter": self.sizes[variant] / self.parameters,
            "bits_per_byte": metrics.bits_per_byte,
            "perplexity": metrics.perplexity,
            "accuracy": metrics.accuracy,
            "held_out_tokens": metrics.tokens,
            "bits_per_byte_loss": quality.bits_per_byte_loss if quality else 0.0,
            "bits_per_byte_loss_error": quality.bits_per_byte_loss_error if quality else 0.0,
            "kl": quality.kl if quality else 0.0,
            "kl_quantiles": dict(zip(map(str, QUANTILES), quality.kl_quantiles, strict=True)) if quality else {},
            "top1_agreement": quality.top1_agreement if quality else 1.0,
            "paths": asdict(quality.paths) if quality else {},
            **({"int8_cache": self._cache_figures(self.caches[variant].quality)} if variant in self.caches else {}),
            **(asdict(self.speeds[variant]) if variant in self.speeds else {}),
        }

    @staticmethod
    def _cache_figures(quality: Quality) -> dict[str, Any]:
        """What an int8 KV cache loses against the float32 cache of the same variant."""
        names = ("bits_per_byte_loss", "bits_per_byte_loss_error", "kl", "top1_agreement")
        return {**{name: getattr(quality, name) for name in names}, "paths": asdict(quality.paths)}

    def files(self, variant: Variant) -> dict[str, str]:
        """The graphs of a variant, for the manifest."""
        cache = self.caches.get(variant)
        return {"file": variant.file, **({"int8_cache": cache.file} if cache else {})}

    def write(self, folder: Path) -> None:
        values = {
            "parameters": self.parameters,
            "machine": self.machine,
            "variants": self.figures(),
            "eight_bit_matrices": self.eight_bit_matrices,
            "finer": self.finer,
            "left_out": self.left_out,
            "float32_reference": asdict(self.float32),
            "float32_against_pytorch": [asdict(agreement) for agreement in self.agreements],
            "runtimes": self.runtimes,
            "trained_on": self.data,
            "sample": self.sample and asdict(self.sample),
            "probe": self.probe,
            "provenance": self.provenance,
        }
        (folder / "receipt.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        from kiara_export.receipt_plot import plot_receipt  # after the model has been freed: matplotlib takes 25 MB

        plot_receipt(self.figures(), self.parameters, folder / PLOT)
        (folder / "README.md").write_text("\n".join(self._card()), "utf-8")

    def _origin(self) -> str:
        if imported := self.provenance["imported"]:
            found = self.provenance["source"]
            place = f", {found['repository']} of the hub at revision {found['revision']}" if found else ""
            return f"Imported from a {imported} model{place}"
        return f"Step {self.provenance['step']}, seed {self.provenance['seed']}"

    def _card(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.provenance["versions"].items())
        return [
            f"# {self.name}",
            "",
            f"A language model of {self.parameters / 1e6:.2f}M parameters with a context of {self.context_length} "
            "tokens, exported by Kiara. Run it with",
            "",
            f'    kiara-run generate {self.name} -p "..."',
            "",
            *self._sample_lines(),
            *self._data_lines(),
            f"## Receipt: {self.float32.tokens:,} held-out tokens",
            "",
            "| variant | MB | bytes a parameter | bits per byte | loss against fp32 | KL, nats a token "
            "| likeliest token as fp32 |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {name} | {f['size_bytes'] / 1e6:.2f} | {f['bytes_per_parameter']:.3f} | {f['bits_per_byte']:.4f} | "
                f"{f['bits_per_byte_loss']:+.3%} ± {f['bits_per_byte_loss_error']:.3%} | {f['kl']:.5f} | "
                f"{f['top1_agreement']:.2%} |"
                for name, f in self.figures().items()
            ),
            "",
            *self._cache_lines(),
            *(f"Remade with finer rounding: {name}, {_times(n)}." for name, n in self.finer.items()),
            *(f"Left out: {name}, which {why}." for name, why in self.left_out.items()),
            f"float32 itself: {self.float32.bits_per_byte:.4f} bits per byte, perplexity "
            f"{self.float32.perplexity:.2f}, next-token accuracy {self.float32.accuracy:.1%}.",
            "",
            f"![Size, loss, divergence and speed of each variant]({PLOT})",
            "",
            *self._speed_lines(),
            *self._path_lines(),
            *self._runtime_lines(),
            f"{self._origin()}; {versions}.",
            "`kiara.json` lists every file with its SHA-256; `kiara-run verify` checks them, and with `--deep` "
            "compares what the graphs compute on your machine.",
            "",
        ]

    def _sample_lines(self) -> list[str]:
        if self.sample is None:
            return []
        how = f"{self.sample.variant}, temperature {self.sample.temperature:g}, seed {self.sample.seed}"
        return [
            f"## A sample ({how})",
            "",
            "The first words are the beginning of the held-out text; after the mark the model goes on.",
            "",
            *(f"    {line}" for line in _printable(f"{self.sample.prompt} ▌{self.sample.text}").splitlines()),
            "",
        ]

    def _data_lines(self) -> list[str]:
        licences = ", ".join(f"[{name}]({name})" for name in self.licences)
        trained = "The origin of its training text is not recorded."
        if self.data is not None:
            trained = (
                f"Trained on {self.data['documents']:,} documents: {self.data['bytes'] / 1e6:,.2f} MB of text, "
                f"{self.data['tokens']:,} tokens (SHA-256 {self.data['sha256'][:16]})."
            )
        return [
            "## Data and licence",
            "",
            trained,
            f"Licence: {licences}." if licences else "No licence file came with the model; ask whoever published it.",
            "",
        ]

    def _cache_lines(self) -> list[str]:
        told = [
            f"{variant.name} {cache.quality.bits_per_byte_loss:+.3%} ± {cache.quality.bits_per_byte_loss_error:.3%}"
            for variant, cache in self.caches.items()
        ]
        return [f"With an int8 KV cache (`--kv-cache int8`) instead of float32: {', '.join(told)}.", ""] if told else []

    def _speed_lines(self) -> list[str]:
        if not self.speeds:
            return []
        rows = [
            f"| {variant.name} | {speed.prefill_tokens_per_second:,.0f} | {speed.decode_tokens_per_second:,.0f} | "
            f"{speed.load_seconds:.2f} | {_mebibytes(speed.peak_memory_bytes)} |"
            for variant, speed in self.speeds.items()
        ]
        prompt = next(iter(self.speeds.values())).prompt_tokens
        return [
            f"## Speed on {self.machine['cores']} cores of {self.machine['cpu']}",
            "",
            f"| variant | prefill of {prompt}, tokens/s | decode, tokens/s | load, s | peak memory, MiB |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]

    def _path_lines(self) -> list[str]:
        lines = [
            "## The float32 graph against PyTorch",
            "",
            "| path | largest logit difference | largest logit | tokens |",
            "|---|---|---|---|",
            *(f"| {a.path} | {a.max_difference:.2g} | {a.scale:.3g} | {a.tokens:,} |" for a in self.agreements),
            "",
        ]
        if not self.qualities:
            return lines
        return [
            *lines,
            "## Paths of each quantised graph against its own prefill",
            "",
            "How often the likeliest token is the same, and whether batching, or computing the prompt in chunks, "
            "changes any bit of a logit:",
            "",
            "| variant | single steps | chunks | padded batch | end of context | batching changes | chunking changes |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {name} | {p.single_steps:.1%} | {p.chunked_prefill:.1%} | {p.padded_batch:.1%} | "
                f"{p.end_of_context:.1%} | {_what(p.batch_exact)} | {_what(p.chunks_exact)} |"
                for name, p in ((variant.name, quality.paths) for variant, quality in self.qualities.items())
            ),
            "",
        ]

    def _runtime_lines(self) -> list[str]:
        if not self.runtimes:
            return []
        tokens = self.runtimes[0]["tokens"]
        return [
            "## The same folder in other runtimes: greedy tokens against Kiara's",
            "",
            f"| runtime | variant | prompts | identical for 64 tokens | for {tokens} | first difference at token |",
            "|---|---|---|---|---|---|",
            *(
                f"| {r['runtime']} {r['version']} | {r['variant']} | {r['prompts']} | "
                f"{r['identical_for_64_tokens']} | {r['identical']} | {_or_dash(r['first_difference'])} |"
                for r in self.runtimes
            ),
            "",
        ]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / (1 << 20):,.0f}"


def _what(exact: bool) -> str:
    return "nothing" if exact else "last bits"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
