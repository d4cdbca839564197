"""The receipt: what was measured of a bundle, as JSON and as the table of its model card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiara.evaluate import Metrics
from kiara_export.verify import Agreement, Quality


@dataclass(frozen=True)
class Receipt:
    """parameters: trained weights. sizes: bytes of each variant's graph. qualities: of the quantised ones."""

    name: str
    parameters: int
    context_length: int
    sizes: dict[str, int]
    float32: Metrics
    agreements: list[Agreement]
    qualities: dict[str, Quality]
    provenance: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """The figures of each variant, flat enough to read in `kiara.json`."""
        return {name: self._figures_of(name) for name in self.sizes}

    def _figures_of(self, name: str) -> dict[str, Any]:
        quality = self.qualities.get(name)
        metrics = quality.metrics if quality else self.float32
        return {
            "size_bytes": self.sizes[name],
            "bytes_per_parameter": self.sizes[name] / self.parameters,
            "bits_per_byte": metrics.bits_per_byte,
            "perplexity": metrics.perplexity,
            "bits_per_byte_loss": quality.bits_per_byte_loss if quality else 0.0,
            "top1_agreement": quality.top1_agreement if quality else 1.0,
            "path_agreement": quality.path_agreement if quality else 1.0,
            "held_out_tokens": metrics.tokens,
        }

    def write(self, folder: Path) -> None:
        values = {
            "parameters": self.parameters,
            "variants": self.figures(),
            "float32_reference": asdict(self.float32),
            "float32_against_pytorch": [asdict(agreement) for agreement in self.agreements],
            "provenance": self.provenance,
        }
        (folder / "receipt.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(self._card(), "utf-8")

    def _origin(self) -> str:
        if imported := self.provenance["imported"]:
            return f"Imported from a {imported} model"
        return f"Step {self.provenance['step']}, seed {self.provenance['seed']}"

    def _card(self) -> str:
        rows = [
            f"| {name} | {f['size_bytes'] / 1e6:.2f} | {f['bytes_per_parameter']:.3f} | {f['bits_per_byte']:.4f} | "
            f"{f['bits_per_byte_loss']:+.3%} | {f['top1_agreement']:.2%} |"
            for name, f in self.figures().items()
        ]
        paths = [f"| {a.path} | {a.max_difference:.2g} | {a.scale:.3g} | {a.tokens:,} |" for a in self.agreements]
        versions = ", ".join(f"{name} {version}" for name, version in self.provenance["versions"].items())
        return "\n".join(
            [
                f"# {self.name}",
                "",
                f"A language model of {self.parameters / 1e6:.2f}M parameters with a context of "
                f"{self.context_length} tokens, exported by Kiara. Run it with",
                "",
                f'    kiara-run generate {self.name} -p "..."',
                "",
                f"## Receipt: {self.float32.tokens:,} held-out tokens",
                "",
                "| variant | MB | bytes a parameter | bits per byte | loss against fp32 | likeliest token as fp32 |",
                "|---|---|---|---|---|---|",
                *rows,
                "",
                f"float32 itself: {self.float32.bits_per_byte:.4f} bits per byte, perplexity "
                f"{self.float32.perplexity:.2f}, next-token accuracy {self.float32.accuracy:.1%}.",
                "",
                "## The float32 graph against PyTorch",
                "",
                "| path | largest difference of a logit | largest logit | tokens |",
                "|---|---|---|---|",
                *paths,
                "",
                f"{self._origin()}; {versions}.",
                "`kiara.json` lists every file with its SHA-256; `kiara-run verify` checks them.",
                "",
            ]
        )
