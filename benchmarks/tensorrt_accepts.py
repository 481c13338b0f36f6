"""Does TensorRT's own parser take what we quantize for it, and is every product that may be int8 int8? No GPU needed.

python benchmarks/tensorrt_accepts.py      # needs onnxcomp[tensorrt]; rewrites the table in docs/providers.md
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path

from common import ROOT, need_assets, onnxcomp, table, write_page

from onnxcomp.verify.tensorrt import ask_tensorrt

CLEAN = "fold-constants,cleanup,fuse-batchnorm,fuse-slices,cleanup"
# min_sqnr=0: nothing is kept float for its error; what is float then is so by the rules of the target
EVERYTHING = f"{CLEAN},quantize-qdq{{activations=minmax,rounding=nearest,min_sqnr=0}}"
IMAGES = ("--scale", "1/255")
CIFAR = (*IMAGES, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
PHOTOS = ("--scale", "1", "--resize", "letterbox", "--color", "bgr")
MODELS = {
    "lenet5-mnist": ("data/mnist-train.npz", IMAGES),
    "lenet300-100-mnist": ("data/mnist-train.npz", IMAGES),
    "resnet20-cifar10": ("data/cifar10-train.npz", CIFAR),
    "yolox-nano": ("data/photos", PHOTOS),
    "minilm-l6": ("data/packages-train.npz", ()),
}


def row(model: Path, *flags: str | Path) -> tuple[str, ...]:
    """Quantize one model for TensorRT and ask about the result."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        options = ("--target", "tensorrt", "--no-bench", "--no-verify", "-q", "--calib-samples", "16", *flags)
        done = onnxcomp("optimize", model, "--passes", EVERYTHING, "-o", out, *options, cwd=Path(folder))
        if done.returncode:
            raise SystemExit(f"{model.name}: {done.stderr}")
        found = ask_tensorrt(out)
    takes = "yes" if found.acceptance.accepted else f"no: {found.acceptance.problems[0][2]}"
    # sizes left out, so that equal reasons are counted together
    short = (
        re.sub(r"\d+ to \d+ ", "", re.sub(r"K=\d+, N=\d+ is", "K or N is", why)) for why in found.kept_float.values()
    )
    reasons = "; ".join(f"{count} {why}" for why, count in Counter(short).most_common())
    refused = len(found.acceptance.refused)
    total = len(found.acceptance.products)
    return (model.stem, takes, f"{found.integer} of {total}", str(refused), reasons.replace("|", "/") or "none")


def main() -> None:
    """Ask for every model, print and write the table."""
    assets = need_assets()
    models = [
        (assets / "models" / f"{name}.onnx", ("--data", assets / data, *own)) for name, (data, own) in MODELS.items()
    ]
    # small models of known architectures, as exporters write them; what becomes int8 does not hang on the data
    models += [(path, ("--allow-random",)) for path in sorted((ROOT / "models" / "architectures").glob("*.onnx"))]
    rows = [row(path, *flags) for path, flags in models]
    head = ("model", "taken", "int8 in the engine", "with Q and DQ, not int8", "kept float by the rules")
    text = table(head, rows)
    print(text)
    write_page(ROOT / "docs" / "providers.md", "accepts", text)


if __name__ == "__main__":
    main()
