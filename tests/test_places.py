"""Is nothing that a run reads ever written, by any name, and are only regular files replaced?"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import pytest
from PIL import Image

from onnxcomp import places
from onnxcomp.build.first import save_job
from onnxcomp.cli.main import main
from onnxcomp.errors import OutputError
from onnxcomp.files import SCRATCH_MARK, atomic_write, remove_abandoned_scratch, scratch
from onnxcomp.job import Job
from onnxcomp.lock import file_lock
from onnxcomp.search import run
from onnxcomp.search.keys import SearchKeys
from onnxcomp.sources import imported_files

METRIC = "import helper\ndef score(outputs, labels):\n    return 1.0\n"
TABLE = 'bench = false\npasses = "cleanup"\n[[model]]\npath = "model.onnx"\ndata = "data.npz"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its weights beside it, samples, labels, a metric with a helper, pictures, a configuration."""
    monkeypatch.chdir(tmp_path)
    builders.save_external(builders.residual_cnn(), tmp_path / "model.onnx")
    builders.save(builders.residual_cnn(seed=1), tmp_path / "after.onnx")
    np.savez("data.npz", images=builders.rng().integers(0, 256, (24, 16, 16, 3), np.uint8))
    np.save("labels.npy", np.arange(24) % 10)
    Path("metric.py").write_text(METRIC)
    Path("helper.py").write_text("x = 1\n")
    Path("images").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("images/0.png")
    Path("onnxcomp.toml").write_text(TABLE)
    return tmp_path


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


RUN = ["--data", "data.npz", "--labels", "labels.npy", "--eval-data", "data.npz", "--eval-labels", "labels.npy"]
OPTIMIZE = ["optimize", "model.onnx", *RUN, "--metric", "metric.py:score", "--passes", "cleanup", "--no-bench", "-q"]
MEASURED = [*RUN, "--metric", "metric.py:score"]
SEARCH = ["search", "model.onnx", *MEASURED, "--objective", "size", "--trials", "1", "--no-bench"]
COMMANDS = {
    "output": [*OPTIMIZE, "-o"],
    "report": [*OPTIMIZE, "--report"],
    "html": [*OPTIMIZE, "--html"],
    "verify": ["verify", "model.onnx", "after.onnx", *RUN[:4], "--metric", "metric.py:score", "--json"],
    "inspect": ["inspect", "model.onnx", "--json"],
    "bench": ["bench", "model.onnx", "--data", "data.npz", "--seconds", "0.1", "--json"],
    "data check": ["data", "check", "model.onnx", *RUN[:4], "--metric", "metric.py:score", "-o"],
    "init": ["init", "model.onnx", "--data", "data.npz", "--force", "-o"],
    "depfile": ["build", "-q", "--depfile"],
    "plan": ["plan", "model.onnx", *MEASURED, "-o"],
    "front": ["plan", "model.onnx", *MEASURED, "--json"],
    "ranges": ["ranges", "model.onnx", "-o"],
    "explain": ["explain", "model.onnx", "after.onnx", "--data", "data.npz", "--json"],
    "compare": ["compare", "model.onnx", "after.onnx", *RUN[:4], "--metric", "metric.py:score", "--markdown"],
    "search": [*SEARCH, "-o"],
    "study": [*SEARCH, "--study"],
    "trials": [*SEARCH, "--json"],
    "classes": ["distill", "model.onnx", *RUN, "--classes", "3", "--steps", "1", "-o"],
}
READ = {
    "inspect": ["model.onnx", "weights.bin"],
    "bench": ["model.onnx", "weights.bin", "data.npz"],
    "init": ["model.onnx", "weights.bin", "data.npz"],
    "depfile": ["model.onnx", "weights.bin", "data.npz", "onnxcomp.toml"],
    "ranges": ["model.onnx", "weights.bin"],
    "explain": ["model.onnx", "after.onnx", "weights.bin", "data.npz"],
    "classes": ["model.onnx", "weights.bin", "data.npz", "labels.npy"],
}
EVERYTHING = ["model.onnx", "weights.bin", "data.npz", "labels.npy", "metric.py"]
CASES = [(name, file) for name in COMMANDS for file in READ.get(name, EVERYTHING)]


@pytest.mark.parametrize(("name", "file"), CASES, ids=[f"{n} {f}" for n, f in CASES])
def test_no_command_writes_what_it_reads(here: Path, name: str, file: str) -> None:
    before = contents(here)
    assert command(*COMMANDS[name], file) == 6
    assert contents(here) == before


def test_a_module_that_the_metric_imports_counts_as_read(here: Path) -> None:
    np.savez("test.npz", images=builders.rng(1).integers(0, 256, (8, 16, 16, 3), np.uint8), labels=np.arange(8))
    before = contents(here)
    data = ["--data", "data.npz", "--eval-data", "test.npz", "--metric", "metric.py:score"]
    assert command("optimize", "model.onnx", *data, "--passes", "cleanup", "--no-bench", "--html", "helper.py") == 6
    assert contents(here) == before


@pytest.mark.parametrize("name", ["data check", "verify", "plan", "compare", "search", "study", "trials"])
def test_what_the_metric_imports_is_found_before_it_is_loaded(here: Path, name: str) -> None:
    before = contents(here)
    assert command(*COMMANDS[name], "helper.py") == 6
    assert contents(here) == before
    assert "helper" not in sys.modules


@pytest.mark.parametrize("flag", ["-o", "--report", "--html", "--save-config"])
def test_a_file_that_a_spec_names_counts_as_read(here: Path, flag: str) -> None:
    Path("ranges.json").write_text("{}")
    before = contents(here)
    spec = 'quantize-qdq{ranges="ranges.json"}'
    assert command("optimize", "model.onnx", "--data", "data.npz", "--passes", spec, flag, "ranges.json") == 6
    Path("onnxcomp.toml").write_text(f"{TABLE.replace('cleanup', 'quantize-qdq{ranges=ranges.json}')}")
    assert command("build", "-q", "--depfile", "ranges.json") == 6
    assert {**contents(here), "onnxcomp.toml": before["onnxcomp.toml"]} == before


def test_the_report_and_the_source_of_an_artifact_count_as_read(here: Path) -> None:
    assert command("optimize", "model.onnx", "--passes", "cleanup,fuse-batchnorm", "--no-bench", "-q") == 0
    before = contents(here)
    for file in ("model.opt.onnx", "model.opt.json", "model.onnx", "weights.bin"):
        assert command("verify", "model.opt.onnx", "--json", file) == 6
    assert contents(here) == before


@pytest.mark.parametrize("name", ["model.opt.json", "model.search.db", "model.opt.toml"])
def test_a_search_writes_no_two_things_into_one_file(here: Path, name: str) -> None:
    assert command(*SEARCH, "--json", name) == 6


def test_what_is_no_configuration_is_not_added_to(here: Path) -> None:
    before = contents(here)
    assert command(*OPTIMIZE, "--save-config", "after.onnx") == 2
    assert command("init", "model.onnx", "-o", "after.onnx") == 2
    assert contents(here) == before


def test_source_that_runs_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("late")
    with pytest.raises(OutputError, match=r"late\.py, which this run reads"), atomic_write(tmp_path / "late.py"):
        pass
    assert (tmp_path / "late.py").read_text() == "x = 1\n"


def test_imports_are_followed_beside_the_file_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    for name, text in {
        "metric.py": "import numpy, helper\nfrom package import part\n",
        "helper.py": "import metric\ndef late():\n    import deep\n",
        "deep.py": "this is no Python",
        "package/__init__.py": "",
        "package/part.py": "from . import other\nfrom .more import x\n",
        "package/other.py": "",
        "package/more.py": "x = 1\n",
        "alone.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    found = {path.as_posix() for path in imported_files(Path("metric.py"), tmp_path)}
    inside = {f"package/{name}.py" for name in ("__init__", "part", "other", "more")}
    assert found == {"helper.py", "deep.py", *inside}


def test_a_picture_of_the_samples_counts_as_read(here: Path) -> None:
    before = contents(here)
    assert command("data", "check", "model.onnx", "--data", "images", "-o", "images/0.png", "-q") == 6
    assert contents(here) == before


@pytest.mark.parametrize("where", ["above/../weights.bin", "hard.bin"])
def test_other_names_of_a_file_are_the_same_file(here: Path, where: str) -> None:
    Path("above").mkdir()
    os.link("weights.bin", "hard.bin")
    before = contents(here)
    assert command(*OPTIMIZE, "-o", where) == 6
    assert contents(here) == before


@pytest.mark.parametrize("key", ["output", "report", "html"])
@pytest.mark.parametrize("file", ["weights.bin", "data.npz", "onnxcomp.toml"])
def test_a_configuration_cannot_write_over_what_it_reads(here: Path, key: str, file: str) -> None:
    Path("onnxcomp.toml").write_text(f'{TABLE}{key} = "{file}"\n')
    before = contents(here)
    assert command("build", "-q") == 6
    assert command("build", "-n") == 6
    assert contents(here) == before


def test_one_models_output_is_not_the_samples_of_another(here: Path) -> None:
    second = '[[model]]\npath = "after.onnx"\noutput = "labels.npy"\nname = "b"\n'
    Path("onnxcomp.toml").write_text(f'{TABLE}labels = "labels.npy"\n{second}')
    before = contents(here)
    assert command("build", "-q") == 6
    assert contents(here) == before


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(path.name)


def link(path: Path) -> None:
    path.symlink_to("elsewhere")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.skipif(os.name != "posix", reason="names of other kinds")
@pytest.mark.parametrize("make", [pipe, listening, link, folder])
@pytest.mark.parametrize("name", ["output", "report", "html", "verify", "inspect", "bench", "data check", "init"])
def test_only_regular_files_are_replaced(here: Path, make: Callable[[Path], None], name: str) -> None:
    place = here / "place"
    make(place)
    kind = place.lstat().st_mode
    before = contents(here)
    assert command(*COMMANDS[name], "place") == 6
    assert place.lstat().st_mode == kind
    assert contents(here) == before


@pytest.mark.skipif(os.name != "posix", reason="pipes with names")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["optimize", "place"], 3),
        (["inspect", "place"], 3),
        (["verify", "place", "after.onnx"], 3),
        (["bench", "place"], 3),
        (["optimize", "after.onnx", "--data", "place"], 4),
        (["optimize", "after.onnx", "--data", "data.npz", "--labels", "place"], 4),
        (["optimize", "after.onnx", "--data", "data.npz", "--metric", "place.py:score"], 2),
        (["optimize", "after.onnx", "--cost-table", "place"], 4),
        (["optimize", "after.onnx", "--plan", "place"], 2),
        (["optimize", "after.onnx", "--data", "data.npz", "--passes", 'mixed-precision{plan="place"}'], 2),
        (["verify", "after.onnx", "--report", "place"], 4),
        (["build", "place"], 2),
    ],
)
def test_a_pipe_is_not_waited_for(here: Path, arguments: list[str], code: int) -> None:
    os.mkfifo("place")
    os.mkfifo("place.py")
    assert command(*arguments) == code


def test_a_folder_is_made_for_the_output(here: Path) -> None:
    assert command("optimize", "after.onnx", "--passes", "fuse-batchnorm", "--no-bench", "-o", "a/b/m.onnx", "-q") == 0
    assert sorted(p.name for p in Path("a/b").iterdir()) == ["m.json", "m.onnx"]


def test_the_scratch_of_a_killed_run_goes_at_the_next_start(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(here))
    code = (
        "import os, signal, tempfile\n"
        "from onnxcomp.files import scratch\n"
        f"tempfile.tempdir = {str(here)!r}\n"
        "with scratch('x') as folder: (folder / 'big').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (here / "onnxcomp-mine").mkdir()  # a folder of the user's, by chance of such a name
    with scratch() as running:
        assert len(list(here.glob("onnxcomp-*"))) == 3
        remove_abandoned_scratch()
        assert sorted(p.name for p in here.glob("onnxcomp-*")) == sorted(["onnxcomp-mine", running.name])
        assert (running / SCRATCH_MARK).exists()
    assert not running.exists()


def test_halves_of_a_killed_run_go_and_those_of_a_running_one_stay(tmp_path: Path) -> None:
    abandoned, held, other = (tmp_path / f".m.onnx.{end}.tmp" for end in ("0123abcd", "89abcdef", "notes"))
    for path in (abandoned, held, other):
        path.write_bytes(b"half")
    with file_lock(held), atomic_write(tmp_path / "m.onnx") as file:
        file.write(b"whole")
    assert (tmp_path / "m.onnx").read_bytes() == b"whole"
    assert [p.exists() for p in (abandoned, held, other)] == [False, True, True]


def test_a_cost_table_that_is_there_is_no_output_that_overwrites(here: Path) -> None:
    Path("times.json").write_text('{"schema": 1, "machine": {}, "entries": {}}')
    job = Job(Path("model.onnx"), data="data.npz", cost_table=Path("times.json"), output=Path("out.onnx"))
    save_job(job, Path("new.toml"))
    assert "times.json" in Path("new.toml").read_text()
    places.check(places.only_read(job), run.writes_of(job, SearchKeys()))
    with pytest.raises(OutputError):
        places.check(places.only_read(job), {"--json": job.model})
