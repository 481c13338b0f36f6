"""The same job by quantize_static, NNCF, Olive, onnxsim and onnxcomp: time, size, speed and answers, judged alike.

    python benchmarks/other_tools.py [ASSETS] [--nncf PYTHON] [--olive PYTHON] [--onnxsim PYTHON] [--markdown FILE]

quantize_static comes with ONNX Runtime (its preparation needs `pip install sympy`); the others are asked of a Python
that has them (`pip install nncf`, `pip install olive-ai requests onnxruntime`, `pip install onnxsim`), each in an
environment of its own, since they pin other versions. Every tool gets the same model and the same 256 samples, with its
own defaults; `onnxcomp compare` sets all files side by side on samples that none of them saw. ASSETS holds models/ and
data/ with resnet20; without it the model that ships here is used.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 256
FEEDS = "import numpy as np, sys\nmodel, data, out = sys.argv[1:]\nfeeds = [dict(np.load(data))]\n"
STATIC = """
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
(name, array), = feeds[0].items()
class Reader(CalibrationDataReader):
    def __init__(self): self.rows = iter(array)
    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {name: row[None]}
quant_pre_process(model, out + '.prepared')
quantize_static(out + '.prepared', out, Reader())
"""
NNCF = """
import nncf, onnx
(name, array), = feeds[0].items()
dataset = nncf.Dataset([row[None] for row in array], lambda row: {name: row})
onnx.save(nncf.quantize(onnx.load(model), dataset, subset_size=len(array)), out)
"""
OLIVE = """
import json, os, pathlib, shutil
os.environ['OLIVE_DISABLE_TELEMETRY'] = '1'
(name, array), = feeds[0].items()
folder = pathlib.Path(out + '.olive')
folder.mkdir()
(folder / 'rows.py').write_text(f'''
import numpy as np
from olive.data.registry import Registry
class Rows:
    def __init__(self): self.rows = np.load({data!r})[{name!r}]
    def __len__(self): return len(self.rows)
    def __getitem__(self, index): return {{{name!r}: self.rows[index]}}, 0
@Registry.register_dataset()
def rows(**_): return Rows()
''')
samples = {'name': 'samples', 'type': 'DataContainer', 'user_script': str(folder / 'rows.py')}
samples |= {f'{step}_data_config': {'type': f'skip_{step}'} for step in ('pre_process', 'post_process')}
samples |= {'load_dataset_config': {'type': 'rows'}}
samples |= {'dataloader_config': {'type': 'default_dataloader', 'batch_size': 1}}
(folder / 'workflow.json').write_text(json.dumps({
    'input_model': {'type': 'OnnxModel', 'model_path': model},
    'data_configs': [samples],
    'passes': {'quantize': {'type': 'OnnxStaticQuantization', 'data_config': 'samples'}},
    'output_dir': str(folder / 'out'), 'cache_dir': str(folder / 'cache'), 'evaluate_input_model': False,
}))
from olive.workflows import run
run(str(folder / 'workflow.json'))
made, = (folder / 'out').rglob('*.onnx')
shutil.copy(made, out)
"""
ONNXSIM = """
import onnx, onnxsim
made, right = onnxsim.simplify(onnx.load(model))
assert right
onnx.save(made, out)
"""


def main() -> None:
    """Make every file, then compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", nargs="?", type=Path)
    parser.add_argument("--nncf", metavar="PYTHON")
    parser.add_argument("--olive", metavar="PYTHON")
    parser.add_argument("--onnxsim", metavar="PYTHON")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    model, data, test, flags = material(asked.assets)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        samples = ready(data, model, flags, work / "samples.npz")
        seconds: dict[str, float] = {}

        def made(name: str, command: list[str]) -> None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode not in (0, 13):
                print(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
            elif (work / f"{name}.onnx").exists():
                seconds[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            else:
                print(f"{name}: nothing was written")

        for name, code, python in (
            ("quantize_static", STATIC, sys.executable),
            ("nncf", NNCF, asked.nncf),
            ("olive", OLIVE, asked.olive),
            ("onnxsim", ONNXSIM, asked.onnxsim),
        ):
            if python:
                made(name, [python, "-c", FEEDS + code, str(model), str(samples), str(work / f"{name}.onnx")])
        ours = [sys.executable, "-m", "onnxcomp", "optimize", str(model), "--data", str(samples), "-q"]
        made("onnxcomp-qdq", [*ours, "--passes", "fuse-batchnorm,quantize-qdq", "-o", "onnxcomp-qdq.onnx"])
        made("onnxcomp-clean", [*ours, "--recipe", "clean", "-o", "onnxcomp-clean.onnx"])
        print("processor time to make it, s: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
        files = [str(work / f"{name}.onnx") for name in seconds]
        table = work / "table.md"
        command = [sys.executable, "-m", "onnxcomp", "compare", str(model), *files, "--data", str(test), *flags]
        subprocess.run([*command, "--eval-samples", "1000", "--markdown", str(table)], check=True)
        if asked.markdown is not None:
            asked.markdown.write_bytes(table.read_bytes())


def material(assets: Path | None) -> tuple[Path, Path, Path, list[str]]:
    """Model, data to calibrate, data to judge, and how pictures become its input."""
    if assets is None:
        folder = ROOT / "models"
        return folder / "digits-cnn.onnx", folder / "digits-train.npz", folder / "digits-test.npz", []
    data = assets / "data"
    flags = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    return assets / "models" / "resnet20-cifar10.onnx", data / "cifar10-train.npz", data / "cifar10-test.npz", flags


def ready(data: Path, model: Path, flags: list[str], out: Path) -> Path:
    """The first samples as the model takes them, so that every tool gets the same numbers."""
    import onnx

    name = onnx.load(model).graph.input[0].name
    with np.load(data) as arrays:
        pixels = arrays["images"][:SAMPLES].astype(np.float32) / 255
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    mean, std = (np.array(values.get(k, d).split(","), np.float32) for k, d in (("--mean", "0"), ("--std", "1")))
    np.savez(out, **{name: ((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)})
    return out


if __name__ == "__main__":
    main()
