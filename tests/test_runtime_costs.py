"""Are measured times kept, replayed to the letter, and added to by new questions alone?"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import builders
import numpy as np
import pytest

import onnxcomp
from onnxcomp import config
from onnxcomp.build import fingerprint
from onnxcomp.build.step import build
from onnxcomp.errors import DataError, OutputError
from onnxcomp.graph import codec
from onnxcomp.runtime import costs
from onnxcomp.runtime.costs import CostTable, MeasuredCosts, signature
from onnxcomp.work import judging

DEFAULT = "fold-constants,cleanup,fuse-batchnorm,quantize-qdq"
FAST = {"bench": False, "eval_samples": 100, "calib_samples": 32}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short timings: none of these tests asks how long anything takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "SECONDS", 0.02)
    monkeypatch.setattr(costs, "RUNS", 2)


def graph_and_feed(seed: int = 0) -> tuple[onnxcomp.Graph, dict[str, np.ndarray]]:
    proto = builders.residual_cnn(seed=seed)
    return codec.decode(proto), builders.feeds_of(proto, batch=1)


# -- questions and answers ---------------------------------------------------------------------------------------------


def test_a_replayed_table_answers_without_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graph, feed = graph_and_feed()
    first = MeasuredCosts(feed, table=CostTable.at(tmp_path / "t.json"))
    answers = first.latency_ms(graph), first.node_times_us(graph)
    assert first.table.measured == 2
    assert answers[0] > 0
    assert set(answers[1]) <= {node.name for node in graph.walk()} | {costs.ADDED}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured although the table knows")

    monkeypatch.setattr(costs, "compare", never)
    monkeypatch.setattr(costs, "named_times", never)
    again = MeasuredCosts(feed, table=CostTable.at(tmp_path / "t.json"))
    assert (again.latency_ms(graph), again.node_times_us(graph)) == answers
    assert again.table.measured == 0


def test_a_graph_is_known_by_what_decides_its_speed_and_not_by_its_weights() -> None:
    graph, feed = graph_and_feed()
    other, _ = graph_and_feed(seed=1)
    assert signature(graph, feed) == signature(other, feed)
    wider = {name: np.repeat(array, 2, axis=0) for name, array in feed.items()}
    assert signature(graph, feed) != signature(graph, wider)
    conv = next(node for node in other.nodes if node.op == "Conv")
    conv.attrs["dilations"] = [2, 2]
    assert signature(graph, feed) != signature(other, feed)


def test_times_of_different_graphs_are_measured_against_the_first_and_one_at_a_time() -> None:
    graph, feed = graph_and_feed()
    deeper = graph.clone()
    deeper.nodes[0].attrs["strides"] = [1, 1]
    held: list[int] = []

    @contextmanager
    def alone():  # type: ignore[no-untyped-def]
        assert not held, "a lock that its holder asks for again never opens"
        held.append(1)
        yield
        held.pop()

    model = MeasuredCosts(feed, alone=alone)
    assert model.latency_ms(graph) > 0
    assert model.latency_ms(deeper) > 0
    fresh = MeasuredCosts(feed, table=CostTable(dict(model.table.entries)), alone=alone)
    assert fresh.latency_ms(deeper) == model.latency_ms(deeper)


# -- files -------------------------------------------------------------------------------------------------------------


def test_two_runs_that_share_a_file_lose_none_of_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    one, two = CostTable.at(path), CostTable.at(path)
    one.enter("a", 1.0)
    two.enter("b", 2.0)
    one.enter("c", 3.0)
    assert CostTable.load(path).entries == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_an_answer_on_the_disk_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    one, two = CostTable.at(path), CostTable.at(path)
    one.enter("a", 1.0)
    two.enter("a", 2.0)
    assert CostTable.load(path).entries == {"a": 1.0}


@pytest.mark.parametrize("text", ["no json", "[]", '{"schema": 99, "entries": {}}', '{"schema": 1}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cost table"):
        CostTable.at(path)


def test_a_table_that_cannot_be_written_is_an_error_before_the_work_goes_on(tmp_path: Path) -> None:
    graph, feed = graph_and_feed()
    (tmp_path / "file").touch()
    model = MeasuredCosts(feed, table=CostTable.at(tmp_path / "file" / "t.json"))
    with pytest.raises(OutputError):
        model.latency_ms(graph)


def test_the_cache_is_begun_anew_where_it_is_spoilt(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "user_cache", lambda: cache / "spoilt")
    table = CostTable.of_this_machine()
    table.enter("a", 1.0)
    assert table.path is not None
    assert CostTable.of_this_machine().entries == {"a": 1.0}
    table.path.write_text("{")
    assert CostTable.of_this_machine().entries == {}
    (cache / "file").write_text("")
    monkeypatch.setattr(costs, "user_cache", lambda: cache / "file")
    CostTable.of_this_machine().enter("a", 1.0)  # no folder can be made there: this run goes on all the same


# -- whole runs --------------------------------------------------------------------------------------------------------


def test_a_replayed_table_gives_a_byte_identical_model(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "times.json"
    options = {"data": digits_data[0], "passes": DEFAULT, "cost_table": table, **FAST}
    first = onnxcomp.optimize(digits, output=tmp_path / "a.onnx", **options)
    assert any("were measured here and added" in note for note in first.notes)
    known = table.read_bytes()
    monkeypatch.setattr(costs, "compare", None)
    monkeypatch.setattr(costs, "named_times", None)
    second = onnxcomp.optimize(digits, output=tmp_path / "b.onnx", **options)
    assert not any("measured here" in note for note in second.notes)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert table.read_bytes() == known


def test_a_table_decides_the_placement_and_names_the_machine_it_is_from(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path
) -> None:
    table = tmp_path / "times.json"
    options = {"data": digits_data[0], "passes": DEFAULT, "cost_table": table, **FAST}
    onnxcomp.optimize(digits, output=tmp_path / "a.onnx", **options)
    content = json.loads(table.read_text())
    content["origin"] |= {"cpu": "Elbrus"}
    latencies = {key: value for key, value in content["entries"].items() if key.startswith("latency_ms")}
    assert len(latencies) > 1
    content["entries"] |= dict.fromkeys(latencies, 1.0)  # as if integers gained nothing
    table.write_text(json.dumps(content))
    slow = onnxcomp.optimize(digits, output=tmp_path / "b.onnx", **options)
    assert any("Elbrus" in note for note in slow.notes)
    assert "int8" not in {layer.precision[1] for layer in slow.layers}
    assert any("no placement of integers is faster" in skip.why for record in slow.passes for skip in record.skips)


def test_a_build_rests_on_the_table_that_it_completed_itself(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_own_code", lambda: "steady")
    fingerprint._surroundings.cache_clear()
    lines = [f'data = "{digits_data[0].as_posix()}"', "bench = false", "eval_samples = 50", "calib_samples = 16"]
    lines += ['cost_table = "times.json"', f'passes = "{DEFAULT}"']
    for name in "ab":
        lines += ["[[model]]", f'path = "{digits.as_posix()}"', f'output = "dist/{name}.onnx"']
    (tmp_path / "onnxcomp.toml").write_text("\n".join(lines))
    first = build(config.load(tmp_path))
    assert [model.status for model in first.models] == ["built", "built"]
    assert [model.status for model in build(config.load(tmp_path)).models] == ["up to date", "up to date"]
    assert (tmp_path / "dist" / "a.onnx").read_bytes() == (tmp_path / "dist" / "b.onnx").read_bytes()
    content = json.loads((tmp_path / "times.json").read_text())
    content["entries"]["another"] = 1.0
    (tmp_path / "times.json").write_text(json.dumps(content))
    third = build(config.load(tmp_path))
    assert [model.status for model in third.models] == ["built", "built"]
    assert third.models[0].why == ["times.json changed"]


def test_the_choice_of_a_recipe_is_replayed_too(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "TRIAL_SECONDS", 0.02)
    table = tmp_path / "times.json"
    options = {"data": digits_data[0], "cost_table": table, "bench_seconds": 0.05, **FAST, "bench": True}
    onnxcomp.optimize(digits, output=tmp_path / "a.onnx", **options)
    content = json.loads(table.read_text())
    trials = [key for key in content["entries"] if key.startswith("comparison")]
    assert trials
    onnxcomp.optimize(digits, output=tmp_path / "b.onnx", **options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    for key in trials:  # what the table says of speed is believed: every recipe so far was slower
        content["entries"][key] |= {"speedup": 0.5, "speedup_interval": [0.49, 0.51]}
    table.write_text(json.dumps(content))
    third = onnxcomp.optimize(digits, output=tmp_path / "c.onnx", **options)
    assert any("not used" in note and "no gain" in note for note in third.notes)


def test_the_recipe_that_a_table_decides_is_the_same_where_nothing_is_timed(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "TRIAL_SECONDS", 0.02)
    table = tmp_path / "times.json"
    options = {"data": digits_data[0], "cost_table": table, "bench_seconds": 0.05, **FAST}
    onnxcomp.optimize(digits, output=tmp_path / "a.onnx", **options | {"bench": True})
    content = json.loads(table.read_text())
    trials = [key for key in content["entries"] if key.startswith("comparison")]
    for key in trials:  # what is smaller and slower is no gain where latency is the aim
        content["entries"][key] |= {"speedup": 0.5, "speedup_interval": [0.49, 0.51]}
    table.write_text(json.dumps(content))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("timed although nothing was to be")

    with monkeypatch.context() as patched:
        patched.setattr(judging, "compare", never)
        report = onnxcomp.optimize(digits, output=tmp_path / "b.onnx", **options)
    assert not report.benchmarks
    assert any("no gain" in note and "2.00 of the time" in note for note in report.notes)
    assert sum(key.startswith("comparison") for key in json.loads(table.read_text())["entries"]) == len(trials)


def test_a_table_that_nothing_asks_is_mentioned(digits: Path, digits_data: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"data": digits_data[0], "passes": DEFAULT, "target": "tensorrt", "cost_table": tmp_path / "t.json"}
    report = onnxcomp.optimize(digits, output=tmp_path / "a.onnx", **options, **FAST)
    assert any("was not used" in note for note in report.notes)
    assert not (tmp_path / "t.json").exists()


def test_a_user_without_a_home_measures_for_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(costs, "user_cache", homeless)
    table = CostTable.of_this_machine()
    table.enter("a", 1.0)
    assert (table.path, table.entries) == (None, {"a": 1.0})
