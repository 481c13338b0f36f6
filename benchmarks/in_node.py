"""What does each form of a model cost in onnxruntime-web (WASM) and in onnxruntime-node, and are the answers the same?

    python benchmarks/in_node.py [ASSETS] [--version 1.30.0] [--rounds 5]

Needs node and npm. Makes each form with onnxcomp, installs both packages into a temporary folder, runs all forms of a
model in turns in one process, single-threaded, and prints a table: processor time as a share of the float model's, and
the SQNR of the answers to those of ONNX Runtime in Python. ASSETS holds models/ and data/ with resnet20; without it the
model that ships here is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
FORMS = {
    "float": "",  # as it is
    "int8, `quantize-qdq`": "fuse-batchnorm,quantize-qdq{placement=table}",
    "4 bits, `quantize-weights{bits=4}`": "fuse-batchnorm,quantize-weights{bits=4}",
    "half, `convert-float16`": "fuse-batchnorm,convert-float16",
}
SCRIPT = """
const ort = require(process.argv[2])
const { readFileSync, writeFileSync } = require('node:fs')
const { files, input, shape, rounds } = JSON.parse(readFileSync('job.json'))
const pixels = new Float32Array(readFileSync(input).buffer.slice(0))
const main = async () => {
  if (ort.env.wasm) ort.env.wasm.numThreads = 1
  const options = { intraOpNumThreads: 1, interOpNumThreads: 1 }
  const sessions = []
  for (const file of files) sessions.push(await ort.InferenceSession.create(readFileSync(file), options))
  const feeds = sessions.map(s => ({ [s.inputNames[0]]: new ort.Tensor('float32', pixels, shape) }))
  const answers = [], times = files.map(() => [])
  for (let i = 0; i < files.length; i++)
    answers.push([...(await sessions[i].run(feeds[i]))[sessions[i].outputNames[0]].data].map(Number))
  for (let round = 0; round < rounds; round++)
    for (let i = 0; i < files.length; i++) {
      const start = process.cpuUsage()
      for (let call = 0; call < 5; call++) await sessions[i].run(feeds[i])
      const spent = process.cpuUsage(start)
      times[i].push((spent.user + spent.system) / 5)
    }
  writeFileSync('found.json', JSON.stringify({ answers, times }))
}
main().then(() => process.exit(0), error => { console.error(error); process.exit(1) })
"""


def main() -> None:
    """Make, install, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", nargs="?", type=Path)
    parser.add_argument("--version", default="1.30.0", help="of onnxruntime-web and onnxruntime-node")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    model, data, flags = ROOT / "models" / "digits-cnn.onnx", ROOT / "models" / "digits-train.npz", []
    if asked.assets is not None:
        model, data = (asked.assets / "models" / "resnet20-cifar10.onnx", asked.assets / "data" / "cifar10-train.npz")
        flags = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "run.cjs").write_text(SCRIPT)
        packages = [f"{name}@{asked.version}" for name in ("onnxruntime-web", "onnxruntime-node")]
        command = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(work), *packages]
        subprocess.run(command, check=True)
        files = [made(model, data, spec, flags, work / f"{index}.onnx") for index, spec in enumerate(FORMS.values())]
        print(f"{model.stem}, Node {said('node', '--version')}, onnxruntime {asked.version}, 1 thread\n")
        print("| form | package | time, share of float's | SQNR to Python's |\n|---|---|---|---|")
        for package in ("onnxruntime-web", "onnxruntime-node"):
            found = run(package, files, work, asked.rounds)
            for form, spent, answer, file in zip(FORMS, found["times"], found["answers"], files, strict=True):
                ratios = np.divide(spent, found["times"][0])
                db = sqnr_db(python(file, work), np.asarray(answer))
                print(f"| {form} | {package} | {np.median(ratios):.2f} | {db:.0f} dB |")


def made(model: Path, data: Path, spec: str, flags: list[str], out: Path) -> Path:
    """The model in one form."""
    if not spec:
        return model
    words = ["optimize", str(model), "--data", str(data), *flags, "--passes", spec, "-q", "-o", str(out)]
    words += ["--no-bench", "--calib-samples", "256", "--eval-samples", "200"]
    subprocess.run([sys.executable, "-m", "onnxcomp", *words], check=True)
    return out


def sample(file: Path) -> tuple[str, np.ndarray[Any, Any]]:
    """The input's name, and one seeded sample for it."""
    (spec,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    return spec.name, np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(package: str, files: list[Path], work: Path, rounds: int) -> dict[str, Any]:
    """Processor times in microseconds a call and the answers, of every file."""
    _, values = sample(files[0])
    values.tofile(work / "input.bin")
    job = {"files": [str(f) for f in files], "input": "input.bin", "shape": values.shape, "rounds": rounds}
    (work / "job.json").write_text(json.dumps(job))
    subprocess.run(["node", "run.cjs", package], cwd=work, check=True)
    found: dict[str, Any] = json.loads((work / "found.json").read_text())
    return found


def python(file: Path, work: Path) -> np.ndarray[Any, Any]:
    """What ONNX Runtime answers here."""
    name, values = sample(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = np.asarray(session.run(None, {name: values})[0]).reshape(-1)
    return answer


def sqnr_db(reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Signal to noise in dB; infinite for equal ones."""
    noise = float(((reference - other) ** 2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10((reference.astype(np.float64) ** 2).sum() / noise))


def said(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
