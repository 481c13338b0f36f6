"""What do int8 models lose on x86 without VNNI, whose integer products saturate? ResNet-20 by an emulation in numpy.

    python benchmarks/saturation.py [IMAGES]

Needs ONNXCOMP_TEST_ASSETS. The arithmetic is that of tests/saturating.py; images are test images that calibration does
not see. Rows go to results/saturation.json and from there into docs/measured.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import onnx
from targets import CIFAR, QUANTIZE

PEER = "quantize_static U8S8 per channel"


def files(assets: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Each way to quantize ResNet-20, by name."""
    model = assets / "models" / "resnet20-cifar10.onnx"
    flags = [str(assets / word) if (assets / word).exists() else word for word in CIFAR]
    for isa in ("portable", "native"):
        out = folder / f"{isa}.onnx"
        spec = f"{QUANTIZE}{{isa={isa},placement=table}}"
        done = common.onnxcomp("optimize", model, "-o", out, "--passes", spec, "--no-bench", "-q", *flags, cwd=folder)
        if done.returncode:
            sys.exit(done.stderr)
        yield f"onnxcomp, isa={isa}", out
    import baseline
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, out = folder / "ready.onnx", folder / "peer.onnx"
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    name = onnx.load(model).graph.input[0].name
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    reader = baseline.Reader(baseline.feeds_of("resnet20", name))
    quantize_static(str(ready), str(out), reader, per_channel=True, **types)
    yield PEER, out


def rows(assets: Path, folder: Path, images: int) -> Iterator[dict[str, Any]]:
    """SQNR against the float model, with sums of 32 bits and with saturating ones."""
    import meter
    import saturating

    x, labels = meter.cifar("test")
    x, labels = x[:images], labels[:images]
    exact = meter.run(assets / "models" / "resnet20-cifar10.onnx", x)[0]
    for name, path in files(assets, folder):
        model = onnx.load(path)
        row: dict[str, Any] = {"row": name, "images": images}
        for key, narrow in (("vnni", False), ("saturating", True)):
            found = saturating.run(model, {model.graph.input[0].name: x}, saturating=narrow)[0]
            row[key] = round(meter.sqnr(exact, found), 2)
            row[f"{key}_top1"] = round(float((found.argmax(1) == labels).mean()), 4)
        yield row


def main() -> None:
    """Measure and bring the page up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="?", type=int, default=200)
    images = parser.parse_args().images
    sys.path.insert(0, str(common.ROOT / "tests"))
    assets, found = common.need_assets(), []
    with tempfile.TemporaryDirectory() as name:
        for row in rows(assets, Path(name), images):
            found.append(row)
            print(row, flush=True)
    head = ["ResNet-20", "SQNR dB with VNNI", "saturating", "top-1 with VNNI", "saturating"]
    keys = ("row", "vnni", "saturating", "vnni_top1", "saturating_top1")
    kept = common.keep("saturation", found, "row")
    text = common.table(head, [[row[key] for key in keys] for row in kept])
    common.write_page(common.ROOT / "docs" / "measured.md", "saturation", text)


if __name__ == "__main__":
    main()
