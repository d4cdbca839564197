"""The runtime in a folder of 100 MB instead of 166, to ship inside an app, without what a running program never loads.

python examples/slim_runtime.py app/lib ./runtime
PYTHONPATH=app/lib python -m kiara_runtime generate bundles/demo -p "def main("

Left out: ONNX Runtime's second library (for programs in C) and its tools for training and converting, NumPy's tests and
build tools, compiled bytecode (Python writes it again where it may), and type stubs.
"""

import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = (
    "bin",
    "onnxruntime/capi/libonnxruntime.*",
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/datasets",
    "onnxruntime/backend",
    "numpy/f2py",
    "numpy/distutils",
    "numpy/testing",
    "**/tests",
    "**/__pycache__",
    "**/*.pyi",
    "**/*.h",
    "**/*.a",
)


def size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main(target: str, *packages: str) -> None:
    folder = Path(target)
    if folder.exists():
        sys.exit(f"{folder} exists: name a new folder")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", target, *packages], check=True)
    whole = size(folder)
    for pattern in UNUSED:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    print(f"{folder}: {size(folder):.0f} MB instead of {whole:.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
