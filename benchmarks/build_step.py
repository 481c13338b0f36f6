"""How fast is an unchanged build, does a killed one finish, do two clones agree, and how heavy is a page?

    python benchmarks/build_step.py [unchanged] [kills] [clones] [page]     # default: all

Rows go to results/build.json and from there into docs/measured.md. `page` needs Chromium for its second figure.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import onnx

Row = dict[str, Any]
MODELS, KILLS, REPEATS = 5, 14, 7
HEAD = """data = "digits-train.npz"
eval_data = "digits-test.npz"
eval_samples = 200
calib_samples = 64
bench = false
passes = "fold-constants,cleanup,fuse-batchnorm,quantize-qdq"
"""


def project(folder: Path, models: int) -> Path:
    """A configuration of some copies of the digits model that differ."""
    folder.mkdir(parents=True)
    text = HEAD
    for file in (common.ROOT / "models").glob("*.npz"):
        shutil.copy(file, folder)
    for index in range(models):
        model = onnx.load(str(common.ROOT / "models" / "digits-cnn.onnx"))
        model.doc_string = f"copy {index}"
        onnx.save(model, str(folder / f"m{index}.onnx"))
        text += f'[[model]]\npath = "m{index}.onnx"\noutput = "dist/m{index}.onnx"\n'
    (folder / "onnxcomp.toml").write_text(text)
    return folder


def build(folder: Path, *options: str) -> str:
    done = common.onnxcomp("build", *options, cwd=folder)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def unchanged(work: Path) -> Iterator[Row]:
    """Seconds of a build that finds nothing to do, and what one changed model costs."""
    folder = project(work / "five", MODELS)
    build(folder, "-j", "2")
    time.sleep(2.5)  # hashes of files younger than two seconds are not remembered
    build(folder)
    walls, owns = [], []
    for _ in range(REPEATS):
        start, before = time.perf_counter(), processor_seconds()
        assert build(folder).count("up to date") == MODELS
        walls.append(time.perf_counter() - start)
        owns.append(processor_seconds() - before)
    figure = f"{statistics.median(walls):.2f}, of them {statistics.median(owns):.2f} on the processor"
    yield {"what": f"unchanged build of {MODELS} models, seconds", "figure": figure}
    changed = onnx.load(str(folder / "m0.onnx"))
    changed.doc_string = "changed"
    onnx.save(changed, str(folder / "m0.onnx"))
    printed = build(folder)
    yield {
        "what": "models built after one of them changed",
        "figure": f"{printed.count('building')} of {MODELS}",
    }


def processor_seconds() -> float:
    """What the processes started so far took of the processor's time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kills(work: Path) -> Iterator[Row]:
    """Kill builds of two models at random moments; look at what stands, then let the next build finish."""
    folder = project(work / "kills", 2)
    start = time.perf_counter()
    build(folder, "--force")
    whole, seconds = contents(folder), time.perf_counter() - start
    moments = random.Random(0)
    halves = unfinished = 0
    for _ in range(KILLS):
        for name in ("dist", ".onnxcomp"):
            shutil.rmtree(folder / name, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxcomp", "build", "-j", "2"], cwd=folder, stdout=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        halves += any(content != whole[name] for name, content in contents(folder).items())
        build(folder)
        left = [path for path in (folder / "dist").iterdir() if path.name not in {*whole, "m0.json", "m1.json"}]
        unfinished += contents(folder) != whole or bool(left)
    yield {"what": f"half or wrong files after {KILLS} kills", "figure": str(halves)}
    yield {"what": "next builds that did not finish or left something lying", "figure": str(unfinished)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "dist").glob("*.onnx"))}


def clones(work: Path) -> Iterator[Row]:
    """Build the same in two places, and compare models and reports."""
    made = [project(work / name, 2) for name in ("here", "somewhere/quite/else")]
    for folder in made:
        build(folder)
    models = contents(made[0]) == contents(made[1])
    reports = [[timeless(json.loads((f / "dist" / f"m{i}.json").read_text())) for i in (0, 1)] for f in made]
    yield {"what": "models of two clones byte-identical", "figure": "yes" if models else "no"}
    yield {"what": "their reports equal but for times", "figure": "yes" if reports[0] == reports[1] else "no"}


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_memory_bytes", "benchmarks")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def page(work: Path) -> Iterator[Row]:
    """Size of the page of a model with 500 layers, and how long Chromium takes to open it."""
    sys.path.insert(0, str(common.ROOT / "tests"))
    import report_samples

    from onnxcomp.report.html import write_html

    path = work / "page.html"
    write_html(report_samples.report(500), path)
    yield {"what": "page of a model with 500 layers, MB", "figure": f"{path.stat().st_size / 1e6:.2f}"}
    if (browser := shutil.which("chromium")) is not None:
        spent = {url: [opened(browser, url, work) for _ in range(5)] for url in ("about:blank", path.as_uri())}
        blank, full = (statistics.median(times) for times in spent.values())
        yield {"what": "opening it in headless Chromium beyond an empty page, seconds", "figure": f"{full - blank:.2f}"}


def opened(browser: str, url: str, work: Path) -> float:
    start = time.perf_counter()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={work / 'profile'}", "--dump-dom"]
    subprocess.run([browser, *options, url], capture_output=True, check=True)
    return time.perf_counter() - start


PARTS = {"unchanged": unchanged, "kills": kills, "clones": clones, "page": page}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    chosen = parser.parse_args().parts or list(PARTS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="onnxcomp-bench-") as work:
        for name in chosen:
            for row in PARTS[name](Path(work)):
                rows.append(row | {"machine": common.machine()["cpu"]})
                print(f"{row['what']}: {row['figure']}", flush=True)
    kept = common.keep("build", rows, "what")
    lines = common.table(("what", "figure"), ([row["what"], row["figure"]] for row in kept))
    common.write_page(common.ROOT / "docs" / "measured.md", "build", f"{lines}\n\n{kept[-1]['machine']}.")


if __name__ == "__main__":
    main()
