"""Does the build step build what changed, that alone, and leave whole files whenever it is stopped?"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import builders
import numpy as np
import onnx
import pytest

from onnxcomp import config, driver
from onnxcomp.build import fingerprint, step
from onnxcomp.build.hashes import GRAIN_NS, Hashes
from onnxcomp.build.step import build, depfile_text, plan
from onnxcomp.cli.main import main
from onnxcomp.errors import OutputError, UsageError
from onnxcomp.files import sha256_of
from onnxcomp.job import Job
from onnxcomp.lock import file_lock
from onnxcomp.results import BuildReport
from onnxcomp.runtime import costs
from onnxcomp.verify.budget import EXIT_CODES
from onnxcomp.work import judging

EXACT = "fold-constants,cleanup,fuse-batchnorm"
HEAD = f'passes = "{EXACT}"\nbench = false\n'


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of onnxcomp is part of what decides a build; while these tests run it counts as one and the same."""
    monkeypatch.setattr(fingerprint, "_own_code", lambda: "steady")
    fingerprint._surroundings.cache_clear()


def make(folder: Path) -> Path:
    """Two small models and a configuration."""
    for name, seed in (("a", 0), ("b", 1)):
        builders.save(builders.residual_cnn(seed=seed), folder / f"{name}.onnx")
    lines = [f'[[model]]\npath = "{name}.onnx"\noutput = "dist/{name}.onnx"\n' for name in "ab"]
    (folder / "onnxcomp.toml").write_text(HEAD + "".join(lines))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two small models and a configuration, not built yet."""
    return make(tmp_path)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, built."""
    folder = make(tmp_path_factory.mktemp("master"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_own_code", lambda: "steady")
        fingerprint._surroundings.cache_clear()
        assert run(folder, jobs=2).exit_code == 0
    return folder


@pytest.fixture
def built(master: Path, tmp_path: Path) -> Path:
    """A copy of the built project: what is remembered holds wherever the project lies."""
    shutil.copytree(master, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder: Path, **options: Any) -> BuildReport:
    return build(config.load(folder), **options)


def statuses(result: BuildReport) -> dict[str, str]:
    return {model.name: model.status for model in result.models}


def age(*paths: Path) -> None:
    """Make files old enough for their hashes to be remembered (their ctime cannot be set: wait)."""
    newest = max(path.stat().st_ctime_ns for path in paths)
    time.sleep(max(0.0, (newest + GRAIN_NS - time.time_ns()) / 1e9 + 0.05))


def cli(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


# -- what is built -------------------------------------------------------------------------------------------------


def test_the_first_build_makes_all_and_the_second_none(project: Path) -> None:
    first = run(project)
    assert (statuses(first), first.exit_code) == ({"dist/a": "built", "dist/b": "built"}, 0)
    written = {name: (project / "dist" / name).read_bytes() for name in ("a.onnx", "a.json", "b.onnx", "b.json")}
    second = run(project, jobs=2)
    assert statuses(second) == {"dist/a": "up to date", "dist/b": "up to date"}
    assert written == {name: (project / "dist" / name).read_bytes() for name in written}
    assert second.models[0].report == first.models[0].report


def test_touching_one_model_builds_that_one_alone(built: Path) -> None:
    builders.save(builders.residual_cnn(seed=7), built / "a.onnx")
    again = run(built)
    assert statuses(again) == {"dist/a": "built", "dist/b": "up to date"}
    assert again.models[0].why == ["a.onnx changed"]


def test_new_times_with_old_contents_build_nothing(built: Path) -> None:
    for name in ("a.onnx", "b.onnx", "dist/a.onnx"):
        os.utime(built / name, ns=(1, 1))
    assert not any(item.reasons for item in plan(config.load(built)))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("bench = false", "bench = false\nseed = 3", "seed changed"),
        ("bench = false", "bench = false\nmin_sqnr = 3", "min_sqnr changed"),
        ('output = "dist/a.onnx"', 'output = "dist/c.onnx"', "there is no accepted build of it yet"),
        ('output = "dist/a.onnx"', 'output = "dist/a.onnx"\ndepends = ["onnxcomp.toml"]', "onnxcomp.toml changed"),
    ],
)
def test_a_changed_option_is_named(built: Path, old: str, new: str, why: str) -> None:
    file = built / "onnxcomp.toml"
    file.write_text(file.read_text().replace(old, new))
    assert why in plan(config.load(built))[0].reasons


def test_an_output_that_is_gone_or_changed_is_built_again(built: Path) -> None:
    (built / "dist/a.onnx").unlink()
    (built / "dist/b.json").write_text("{}")
    reasons = {item.entry.name: item.reasons for item in plan(config.load(built))}
    assert reasons == {"dist/a": ["dist/a.onnx is gone"], "dist/b": ["dist/b.json was changed by something else"]}
    assert statuses(run(built)) == {"dist/a": "built", "dist/b": "built"}


@pytest.mark.parametrize(
    ("old", "new", "words", "code"),
    [
        ('passes = "', 'passes = "quantise-qdq,', "did you mean quantize-qdq?", 2),
        ('path = "a.onnx"', 'path = "absent.onnx"', "there is no such file", 3),
        ('path = "a.onnx"', 'path = "a.onnx"\ndata = "absent.npz"', "there is no such file", 4),
    ],
)
def test_a_dry_run_finds_what_would_fail_before_any_work(
    project: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str, code: int
) -> None:
    file = project / "onnxcomp.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert cli("build", file, "--dry-run") == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert "would fail" in shown.out


def test_force_only_and_dry_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "onnxcomp.toml"
    before = set(project.rglob("*"))
    assert cli("build", file, "--dry-run") == 0
    assert set(project.rglob("*")) == before
    assert "dist/a: would be built: there is no accepted build of it yet" in capsys.readouterr().out
    assert cli("build", file, "--only", "dist/b") == 0
    assert (project / "dist/b.onnx").exists()
    assert not (project / "dist/a.onnx").exists()
    result = run(project, only=["*b*"], force=True)
    assert [(m.name, m.status, m.why) for m in result.models] == [("dist/b", "built", ["it was asked for"])]
    with pytest.raises(UsageError, match="no model is called 'dist/bb'"):
        run(project, only=["dist/bb"])


def test_external_data_is_part_of_a_model(project: Path) -> None:
    path = builders.save_external(builders.residual_cnn(seed=4), project / "a.onnx")
    run(project)
    data = project / "weights.bin"
    assert path.exists()
    changed = bytearray(data.read_bytes())
    changed[100] ^= 1
    data.write_bytes(changed)
    (first, second) = plan(config.load(project))
    assert (first.reasons, second.reasons) == (["weights.bin changed"], [])


def test_data_folders_and_functions_are_followed(project: Path) -> None:
    (project / "feeds").mkdir()
    (project / "feeds" / "one.txt").write_text("1")
    (project / "gen.py").write_text("import near\ndef feeds():\n    yield {}\n")
    (project / "near.py").write_text("x = 1\n")
    (project / "enc.json").write_text("{}")
    (project / "onnxcomp.toml").write_text(
        '[[model]]\npath = "a.onnx"\ndata = "gen.py:feeds"\nmetric = "gen.py:feeds:min"\ndepends = ["feeds"]\n'
        '[[model]]\npath = "b.onnx"\ndata = "no_such_package.module:feeds"\npasses = "quantize-qdq{ranges=enc.json}"\n'
    )
    found = config.load(project)
    hashes = Hashes(project, project / "none.json")
    parts = [fingerprint.parts_of(entry, hashes) for entry in found.models]
    (project / "feeds" / "two.txt").write_text("2")
    (project / "gen.py").write_text("import near\ndef feeds():\n    yield {'x': 1}\n")
    (project / "near.py").write_text("x = 2\n")
    (project / "enc.json").write_text("{ }")
    now = [fingerprint.parts_of(entry, hashes) for entry in found.models]
    assert fingerprint.changes(parts[0], now[0]) == ["feeds changed", "gen.py changed", "near.py changed"]
    word, ranges = fingerprint.changes(parts[1], now[1])
    assert "enc.json changed" in (word, ranges)
    assert "name it in depends" in word + ranges


def test_an_unchanged_build_loads_no_runtime(built: Path) -> None:
    code = (
        "import sys\n"
        "from onnxcomp.build import fingerprint\n"
        "fingerprint._own_code = lambda: 'steady'\n"
        "from onnxcomp.cli.main import main\n"
        "try: main(['build', '-q'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*[m for m in ('onnxruntime', 'onnx', 'numpy', 'rich', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=built, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    result = json.loads((built / ".onnxcomp/reports/build.json").read_text())
    assert {model["status"] for model in result["models"]} == {"up to date"}


def test_an_artifact_knows_its_source_wherever_one_stands(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source and artifact may bear one name: a.onnx and dist/a.onnx."""
    for folder in (built, built / "dist", built.parent):
        monkeypatch.chdir(folder)
        assert cli("verify", built / "dist/a.onnx") == 0
        assert "unchanged" in capsys.readouterr().out
    builders.save(builders.residual_cnn(seed=7), built / "a.onnx")
    assert cli("verify", built / "dist/a.onnx") == 3
    assert "has changed since" in capsys.readouterr().out


# -- what is refused -----------------------------------------------------------------------------------------------


def test_the_lowest_failing_code_ends_the_build_and_the_rest_is_built(project: Path) -> None:
    (project / "bad.onnx").write_bytes(b"no model")
    with (project / "onnxcomp.toml").open("a") as file:
        file.write('max_size = "1%"\n[[model]]\npath = "bad.onnx"\n')
    result = run(project)
    assert statuses(result) == {"dist/a": "built", "dist/b": "failed", "bad": "failed"}
    assert ([model.exit_code for model in result.models], result.exit_code) == ([0, 11, 3], 3)
    assert (project / "dist/b.rejected.onnx").exists()
    assert not (project / "dist/b.onnx").exists()
    assert cli("build", project, "-q") == 3


def test_a_refused_build_takes_the_place_of_the_accepted_one_before(built: Path) -> None:
    file = built / "onnxcomp.toml"
    text = file.read_text()
    file.write_text(text.replace("bench = false", 'bench = false\nmax_size = "1%"'))
    result = run(built, only=["dist/a"])
    assert result.exit_code == 11
    assert not (built / "dist/a.onnx").exists()
    assert result.models[0].notes == [
        "dist/a.onnx, which an earlier state of the configuration had made, is no longer there"
    ]
    (reason,) = plan(config.load(built), only=["dist/a"])[0].reasons  # what was refused is never up to date
    assert reason.startswith("it was refused last time: missed max_size 1% (")
    file.write_text(text)
    assert run(built).exit_code == 0
    assert not (built / "dist/a.rejected.onnx").exists()


def test_a_missed_budget_of_any_kind_is_a_refusal() -> None:
    assert {line for line in EXIT_CODES.values() if line not in step.JUDGED} == set()


def test_a_refused_build_leaves_a_file_of_somebody_else_alone(built: Path) -> None:
    (built / "dist/a.onnx").write_bytes(b"precious")
    file = built / "onnxcomp.toml"
    file.write_text(file.read_text().replace("bench = false", 'bench = false\nmax_size = "1%"'))
    assert run(built, only=["dist/a"]).exit_code == 11
    assert (built / "dist/a.onnx").read_bytes() == b"precious"


def test_the_file_is_measured_again_from_the_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    job = Job(Path("a.onnx"), output=Path("out.onnx"), passes=EXACT, bench=False)
    report = driver.run(job)
    driver.check_written(job, report)
    other = onnx.load("out.onnx")
    other.doc_string = "changed"
    onnx.save(other, "out.onnx")
    with pytest.raises(driver.OnnxcompError, match="not the one that was measured"):
        driver.check_written(job, report)


def test_a_worker_that_crashes_fails_its_model_alone(project: Path) -> None:
    np.savez(project / "x.npz", x=np.zeros(1))
    (project / "die.py").write_text("import os, signal\ndef feeds():\n    os.kill(os.getpid(), signal.SIGSEGV)\n")
    with (project / "onnxcomp.toml").open("a") as file:
        file.write('data = "die.py:feeds"\n')
    result = run(project)
    assert statuses(result) == {"dist/a": "built", "dist/b": "failed"}
    assert result.models[1].error is not None
    assert "SIGSEGV" in result.models[1].error.what
    assert result.exit_code == 1


# -- stopped at any moment -----------------------------------------------------------------------------------------


def whole(folder: Path) -> Iterator[str]:
    """Everything that stands in the output folder, after a look that it is no half file."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix == ".onnx":
            onnx.checker.check_model(str(path), full_check=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        yield path.name


@pytest.mark.parametrize("after_s", [0.3, 1.2, 1.8, 2.4])
def test_a_killed_build_leaves_no_half_file_and_the_next_one_finishes(project: Path, after_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxcomp", "build", "-j", "2"], cwd=project, stdout=subprocess.PIPE
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert {name for name in whole(project / "dist") if not name.startswith(".")} <= {
        f"{name}.{suffix}" for name in "ab" for suffix in ("onnx", "json")
    }
    result = run(project)
    assert result.exit_code == 0
    assert set(whole(project / "dist")) == {"a.onnx", "a.json", "b.onnx", "b.json"}
    assert not (project / ".onnxcomp/scratch").exists()
    assert cli("verify", project / "dist/a.onnx") == 0


def test_an_interrupted_build_ends_its_processes_and_cleans_up(project: Path) -> None:
    (project / "slow.py").write_text("import time\ndef feeds():\n    time.sleep(600)\n")
    with (project / "onnxcomp.toml").open("a") as file:
        file.write('data = "slow.py:feeds"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxcomp", "build", "--only", "dist/b"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and children inherit that
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads here)
    )
    assert process.stdout is not None
    assert "building" in process.stdout.readline()
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (project / ".onnxcomp/scratch").exists()
    with file_lock(project / ".onnxcomp/build.lock", lambda: pytest.fail("a process of the build still runs")):
        pass


def test_files_that_change_while_they_are_built_are_built_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config.load(project)
    real = fingerprint.parts_of
    calls = {"a.onnx": 0, "b.onnx": 0}

    def moving(entry: config.ModelEntry, hashes: Hashes) -> fingerprint.Parts:
        calls[str(entry.job.model)] += 1
        return real(entry, hashes) | ({"file x": str(calls["a.onnx"])} if entry.job.model.name == "a.onnx" else {})

    monkeypatch.setattr(step, "parts_of", moving)
    result = build(found)
    assert result.models[0].notes == ["its files changed while it was built: the next build makes it again"]
    assert statuses(build(found)) == {"dist/a": "built", "dist/b": "up to date"}


def test_two_timings_never_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver enters the lock around the measurement of latency, and the lock holds between processes."""
    path, log = tmp_path / "lock", tmp_path / "log"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom onnxcomp.lock import file_lock\n"
        "with file_lock(Path(sys.argv[1])):\n"
        "    open(sys.argv[2], 'a').write('in\\n'); time.sleep(0.1); open(sys.argv[2], 'a').write('out\\n')\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(log)]) for _ in range(4)]
    assert all(process.wait() == 0 for process in started)
    assert log.read_text().split() == ["in", "out"] * 4

    events: list[str] = []

    class Watch:
        def __enter__(self) -> None:
            events.append("in")

        def __exit__(self, *_: object) -> None:
            events.append("out")

    real = judging.compare
    monkeypatch.setattr(judging, "compare", lambda *a, **k: events.append("timed") or real(*a, **k))
    monkeypatch.chdir(tmp_path)
    model = builders.save(builders.residual_cnn(), tmp_path / "m.onnx")
    driver.run(Job(model, passes=EXACT, bench_seconds=0.1), alone=Watch)
    assert events == ["in", "timed", "out"]


def test_a_pass_that_times_without_a_cost_table_keeps_to_that_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bench = false the driver gives no times, and a pass that needs some measures for itself."""
    from onnxcomp.graph.codec import decode
    from onnxcomp.manager.base import PassContext
    from onnxcomp.passes.structure.timing import Clock

    events: list[str] = []

    @contextmanager
    def alone() -> Iterator[None]:
        events.append("in")
        yield
        events.append("out")

    class Samples:
        def batches(self, size: int | None = None) -> Iterator[dict[str, Any]]:
            yield builders.feeds_of(proto)

    proto = builders.residual_cnn()
    real = costs.compare
    monkeypatch.setattr(costs, "compare", lambda *a, **k: events.append("timed") or real(*a, **k))
    monkeypatch.setattr(costs, "SECONDS", 0.1)
    Clock(decode(proto), PassContext(calibration=Samples(), alone=alone))  # type: ignore[arg-type]
    assert events[:3] == ["in", "timed", "out"]


# -- the same everywhere -------------------------------------------------------------------------------------------

TIMES = {"seconds", "peak_memory_bytes"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_two_clones_build_the_same(digits: Path, digits_data: tuple[Path, Path], tmp_path: Path) -> None:
    clones = [tmp_path / "one", tmp_path / "a longer name for two"]
    for clone in clones:
        clone.mkdir()
        for file in (digits, *digits_data):
            shutil.copy(file, clone / file.name)
        (clone / "onnxcomp.toml").write_text(
            'data = "digits-train.npz"\neval_data = "digits-test.npz"\nbench = false\nmax_drop = 0.01\n'
            '[[model]]\npath = "digits-cnn.onnx"\noutput = "dist/digits.onnx"\n'
            'passes = "fold-constants,cleanup,fuse-batchnorm,quantize-qdq"\n'
        )
        assert cli("build", clone) == 0
    models = [(clone / "dist/digits.onnx").read_bytes() for clone in clones]
    assert models[0] == models[1]
    for name in ("dist/digits.json", ".onnxcomp/reports/build.json"):
        texts = [(clone / name).read_text() for clone in clones]
        assert not any(str(tmp_path) in text for text in texts)
        assert without_times(json.loads(texts[0])) == without_times(json.loads(texts[1]))
    for name in ("build.md", "junit.xml"):
        assert str(tmp_path) not in (clones[0] / ".onnxcomp/reports" / name).read_text()


# -- reports -------------------------------------------------------------------------------------------------------


def test_reports_for_scripts_and_ci(project: Path) -> None:
    with (project / "onnxcomp.toml").open("a") as file:
        file.write('min_sqnr = 20\nmax_size = "1%"\ndata = "gone.npz"\n')
    assert cli("build", project) == 4
    reports = project / ".onnxcomp/reports"
    content = json.loads((reports / "build.json").read_text())
    assert (content["schema"], content["exit_code"]) == (1, 4)
    assert [model["verdict"] for model in content["models"]] == ["accepted", None]
    assert "gone.npz" in content["models"][1]["error"]["what"]
    suites = ET.parse(reports / "junit.xml").getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("2", "0", "1")
    text = (reports / "build.md").read_text()
    assert "1 of 2 models accepted" in text
    assert "gone.npz" in text


def test_the_depfile_names_everything_that_is_read(project: Path) -> None:
    builders.save_external(builders.residual_cnn(seed=4), project / "a.onnx")
    (project / "with space").write_text("x")
    with (project / "onnxcomp.toml").open("a") as file:
        file.write('depends = ["with space"]\n')
    rules = depfile_text(config.load(project)).replace("\\\n", "").splitlines()
    outputs = [rule.split(":")[0].split("/")[-1] for rule in rules]
    assert outputs == ["a.onnx", "b.onnx"]
    assert "weights.bin" in rules[0]
    assert "with\\ space" in rules[1]
    assert all("onnxcomp.toml" in rule for rule in rules)


# -- what a build may remove -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [".", "notes", "{outside}"])
def test_a_state_folder_that_holds_other_things_keeps_them(project: Path, tmp_path_factory: Any, state: str) -> None:
    outside = tmp_path_factory.mktemp("outside")
    place = state.format(outside=outside)
    folder = project / place
    (folder / "scratch").mkdir(parents=True)
    (folder / "scratch" / "thesis.txt").write_text("mine")
    toml = project / "onnxcomp.toml"
    toml.write_text(f'state = "{place}"\n{toml.read_text()}')
    with pytest.raises(OutputError, match="scratch"):
        run(project)
    assert (folder / "scratch" / "thesis.txt").read_text() == "mine"
    shutil.rmtree(folder / "scratch")
    assert run(project).exit_code == 0
    assert not (folder / ".gitignore").exists()  # git is to see what else lies there
    assert not (folder / "scratch").exists()


def test_a_damaged_state_removes_nothing_that_no_build_made(built: Path, tmp_path_factory: Any) -> None:
    elsewhere = builders.save(builders.mlp(), tmp_path_factory.mktemp("elsewhere") / "stamped.onnx")
    shutil.copy(built / "dist" / "a.onnx", elsewhere)  # ours, but not in this folder
    own = built / "labels.csv"
    own.write_text("1,2,3")
    (state,) = (built / ".onnxcomp" / "models").glob("dist_a-*.json")
    record = json.loads(state.read_text())
    record["outputs"] |= {str(elsewhere): sha256_of(elsewhere), "labels.csv": sha256_of(own), "\0": "", "..": ""}
    state.write_text(json.dumps(record))
    touch_weights(built)
    assert run(built, only=("dist/a",)).exit_code == 0
    assert elsewhere.exists() and own.read_text() == "1,2,3"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"schema": 1, "parts": [], "outputs": {}}',
        '{"schema": 1, "parts": {}, "outputs": {"a": 3}}',
    ],
)
def test_damaged_files_of_the_state_are_as_if_there_were_none(built: Path, content: str) -> None:
    for path in (*(built / ".onnxcomp" / "models").glob("*.json"), built / ".onnxcomp" / "hashes.json"):
        path.write_text(content)
    assert [item.reasons for item in plan(config.load(built))] == [["there is no accepted build of it yet"]] * 2


def test_damaged_hashes_are_taken_anew(built: Path) -> None:
    (built / ".onnxcomp" / "hashes.json").write_text(
        '{"files": {"x": 5, "y": [[1], "z"]}, "derived": {"q": "no list"}}'
    )
    assert [item.reasons for item in plan(config.load(built))] == [[], []]


def touch_weights(folder: Path) -> None:
    """Another model under the name of the first."""
    builders.save(builders.residual_cnn(seed=7), folder / "a.onnx")
