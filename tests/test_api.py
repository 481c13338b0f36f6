"""Does the library take models and data as a program has them, and give back what a notebook can show?"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxcomp
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.manager.spec import make_pass

FAST: dict[str, Any] = {"bench": False}
PASSES = ["fold-constants,cleanup", make_pass("fuse-batchnorm", {})]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(digits_data: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    """[80, 1, 8, 8] as the model takes them, and their labels."""
    with np.load(digits_data[0]) as data:
        return (data["images"][:80, None].astype(np.float32) / 255).reshape(80, 1, 8, 8), data["labels"][:80]


def test_a_model_in_memory_comes_back_in_memory(digits: Path, tmp_path: Path) -> None:
    proto = onnx.load(digits)
    untouched = proto.SerializeToString()
    result = onnxcomp.optimize(proto, passes=PASSES, **FAST)
    assert result.verdict == "accepted" and not list(tmp_path.iterdir())
    model = result.model
    assert isinstance(model, onnx.ModelProto) and proto.SerializeToString() == untouched
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    before, after = (
        onnxruntime.InferenceSession(p.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": x})
        for p in (proto, model)
    )
    np.testing.assert_allclose(after[0], before[0], atol=1e-4)
    assert onnxcomp.optimize(untouched, passes=PASSES, **FAST).model == model
    path = Path(result.output.path) if result.output else Path()
    del result
    assert not path.exists()  # what lay in memory goes with the result


def test_a_model_in_memory_is_written_where_that_is_asked_for(digits: Path, tmp_path: Path) -> None:
    result = onnxcomp.optimize(onnx.load(digits), output="mine.onnx", passes=PASSES, **FAST)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.onnx", "mine.json"}
    assert onnx.load("mine.onnx") == result.model


def test_nothing_gained_is_no_model(tmp_path: Path) -> None:
    result = onnxcomp.optimize(builders.mlp(), passes="fuse-batchnorm", **FAST)
    assert (result.verdict, result.exit_code) == ("unchanged", 13)
    with pytest.raises(ModelError, match="made no model"):
        _ = result.model


def one_by_one(x: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    yield from ({"image": row} for row in x)


SOURCES = {
    "dict": lambda x, y: {"image": x},
    "array": lambda x, y: x,
    "generator of feeds": lambda x, y: ({"image": x[i : i + 10]} for i in range(0, len(x), 10)),
    "generator of samples": lambda x, y: one_by_one(x),
    "function": lambda x, y: lambda: one_by_one(x),
    "list of arrays": lambda x, y: list(x),
    "batches and labels": lambda x, y: [(x[i : i + 20], y[i : i + 20]) for i in range(0, len(x), 20)],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_data_come_as_a_program_has_them(kind: str, digits: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pictures
    labels = {} if kind == "batches and labels" else {"labels": y}
    found = onnxcomp.verify(digits, onnx.load(digits), SOURCES[kind](x, y), **labels)
    assert found.fidelity.samples == len(x) and found.fidelity.identical
    assert found.accuracy is not None and found.accuracy.before > 0.9


def test_an_iterator_feeds_a_whole_run_though_it_gives_its_samples_once(
    digits: Path, pictures: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = pictures
    result = onnxcomp.optimize(digits, data=one_by_one(x), labels=y, passes=PASSES, output="o.onnx", **FAST)
    assert result.accuracy is not None and result.accuracy.before > 0.9
    assert result.calibration is not None and result.calibration.samples == len(x) // 2


def test_what_is_no_feed_is_said(digits: Path) -> None:
    for wrong in ([3, 4], [{"other": np.zeros((1, 1, 8, 8), np.float32)}], iter([np.zeros((2, 2), np.float32)])):
        with pytest.raises(DataError):
            onnxcomp.verify(digits, digits, wrong)


def test_a_metric_is_a_function_or_says_which_way_it_points(
    digits: Path, pictures: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = pictures

    def wrong_share(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> float:
        assert labels is not None
        return float((outputs["logits"].argmax(1) != labels).mean())

    better = onnxcomp.verify(digits, digits, x, labels=y, metric=wrong_share)
    assert better.accuracy is not None and better.accuracy.metric == "wrong_share" and better.accuracy.before < 0.1
    loss = onnxcomp.Metric("errors", wrong_share, higher_is_better=False)
    halves: dict[str, Any] = {"data": x[:40], "labels": y[:40], "eval_data": x[40:], "eval_labels": y[40:]}
    spec = "clip-weights{method=percentile,percentile=40}"
    result = onnxcomp.optimize(digits, **halves, metric=loss, max_drop=0.01, passes=spec, output="o.onnx", **FAST)
    assert result.accuracy is not None and result.accuracy.drop > 0.01  # more errors are a loss
    assert (result.verdict, result.exit_code) == ("over-budget", 10)
    assert len(result.model.graph.node) > 0  # the model that missed it


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: onnxcomp.optimize(m, max_dorp=1), "did you mean max_drop"),
        (lambda m: onnxcomp.optimize(3), "not int"),
        (lambda m: onnxcomp.optimize(m, calib_samples="many"), "calib_samples"),
        (lambda m: onnxcomp.optimize(m, objective="speed"), "objective"),
        (lambda m: onnxcomp.optimize(m, passes=[3]), "not 3"),
        (lambda m: onnxcomp.optimize(m, shapes={"image": [1, "a", 8, 8]}), "shape"),
        (lambda m: onnxcomp.distill(m, epoch=1), "epochs"),
        (lambda m: onnxcomp.verify(m, m, None, batch=3), "no option 'batch'"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(call: Any, words: str, digits: Path) -> None:
    with pytest.raises(UsageError) as caught:
        call(digits)
    assert words in f"{caught.value.what} {caught.value.do}"


def test_everything_has_a_short_repr_and_a_table(digits: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pictures
    proto = onnx.load(digits)
    result = onnxcomp.optimize(proto, data=x, labels=y, passes="fuse-batchnorm,quantize-qdq", **FAST)
    table = onnxcomp.bench(proto, result.model, data=x, seconds=0.05, footprints=False)
    things = {
        "top1": result,
        "SQNR": result,
        "logits": onnxcomp.verify(proto, result.model, x, labels=y),
        "model-2.onnx": table,
        "MACs": onnxcomp.inspect(proto),
        "conv3": onnxcomp.explain(proto, result.model, x, samples=8, times=False),
    }
    for word, thing in things.items():
        assert len(repr(thing)) < 400 and repr(thing).startswith(f"<{type(thing).__name__}"), repr(thing)
        page = thing._repr_html_()  # type: ignore[attr-defined]
        assert word in page and page.count("<tr>") > 1 and "<script" not in page
        assert "/" not in repr(thing).partition(":")[0]  # a model in memory has no place on the disk
    assert result.to_json()["verdict"] == "accepted"


def test_names_of_files_are_text_in_a_notebook() -> None:
    from onnxcomp.report.notebook import fragment

    assert "<b>" not in fragment("<b>", ("<b>",), [("<b>",)], ["<b>"]).replace("<div><b>", "").replace("</b>", "")


def test_build_says_what_became_of_each_model(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxcomp.toml").write_text(
        f'bench = false\n[[model]]\npath = "{digits}"\noutput = "a.onnx"\npasses = "cleanup,fuse-batchnorm"\n'
    )
    told: list[str] = []
    built = onnxcomp.build(tell=told.append)
    assert built.exit_code == 0 and [m.status for m in built.models] == ["built"] and told
    assert onnxcomp.build(tmp_path).models[0].status == "up to date"
    assert "a built" in repr(built) and "accepted" in built._repr_html_()
    assert (tmp_path / ".onnxcomp" / "reports" / "index.html").exists()


@pytest.mark.parametrize("name", ["verify", "distill", "build"])
def test_a_folder_of_the_source_takes_no_functions_name(name: str) -> None:
    """The import system would put the module there, before or after the function was asked for."""
    folder = importlib.import_module(f"onnxcomp.{name}")
    importlib.reload(folder)
    assert callable(getattr(onnxcomp, name)) and getattr(onnxcomp, name) is not folder
    assert importlib.import_module(f"onnxcomp.{name}") is folder
