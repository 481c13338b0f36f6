"""Wrong preprocessing is said before anything else, by the model's score or by its first BatchNormalization."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import helper

from onnxcomp import optimize
from onnxcomp.graph.codec import decode
from onnxcomp.job import Job
from onnxcomp.search.pool import source_of
from onnxcomp.verify.budget import Budget, Size
from onnxcomp.verify.preprocessing import first_normalization
from onnxcomp.work.study import Study

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """[n, 8, 8, 3] uint8, dim or bright by class, and the classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 2
    level = np.where(labels == 1, 140, 90)[:, None, None, None]
    return np.clip(level + generator.normal(0, 6, (n, 8, 8, 3)), 0, 255).astype(np.uint8), labels


def classifier() -> builders.ModelProto:
    """Names the class by the sign of the mean value, which is 0 between the classes where pictures are normalised."""
    images, _ = pictures()
    middle = float(((images / 255 - MEAN) / STD).mean())
    weights = {
        "W": np.array([[[[1 / 192]] * 1]] * 1, np.float32).repeat(3, 1) * np.ones((1, 3, 8, 8), np.float32),
        "flat": np.array([0, 1]),
        "M": np.array([[-1.0, 1.0]], np.float32),
        "b": np.array([middle, -middle], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "W"], ["c"], "conv"),
        helper.make_node("Reshape", ["c", "flat"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "M"], ["m"], "out"),
        helper.make_node("Add", ["m", "b"], ["y"], "bias"),
    ]
    inputs = [builders.value("image", builders.FLOAT, ["N", 3, 8, 8])]
    return builders.model(nodes, inputs, [builders.value("y", builders.FLOAT, ["N", 2])], weights)


def normalised() -> builders.ModelProto:
    """A Conv and a BatchNormalization that was trained on normalised pictures."""
    generator = builders.rng(1)
    images, _ = pictures()
    tensor = ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    kernel = builders.normal(generator, 4, 3, 1, 1)
    seen = np.einsum("nchw,oc->nohw", tensor, kernel[:, :, 0, 0])
    weights = {
        "W": kernel,
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
        "mean": seen.mean((0, 2, 3)).astype(np.float32),
        "var": seen.var((0, 2, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "W"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], "bn"),
    ]
    inputs = [builders.value("image", builders.FLOAT, ["N", 3, 8, 8])]
    return builders.model(nodes, inputs, [builders.value("y", builders.FLOAT, ["N", 4, 8, 8])], weights)


def optimized(folder: Path, proto: builders.ModelProto, data: dict[str, np.ndarray], **options):
    path = builders.save(proto, folder / "m.onnx")
    spec = "quantize-weights"
    return optimize(path, data=data, passes=spec, output=folder / "o.onnx", bench=False, **options)


def test_a_score_that_another_preprocessing_doubles_is_doubted_first(tmp_path: Path) -> None:
    images, labels = pictures()
    report = optimized(tmp_path, classifier(), {"images": images, "labels": labels})
    assert "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in report.warnings[0]
    written = json.loads((tmp_path / "o.json").read_text())
    assert written["warnings"] == report.warnings


def test_the_right_preprocessing_is_not_doubted(tmp_path: Path) -> None:
    images, labels = pictures()
    report = optimized(tmp_path, classifier(), {"images": images, "labels": labels}, mean=MEAN, std=STD)
    assert not report.warnings


def test_without_labels_the_first_batch_normalization_tells(tmp_path: Path) -> None:
    images, _ = pictures()
    report = optimized(tmp_path, normalised(), {"images": images})
    assert "the first BatchNormalization sees what it was trained on" in report.warnings[0]
    assert not optimized(tmp_path, normalised(), {"images": images}, mean=MEAN, std=STD).warnings


def test_model_ready_data_are_not_doubted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    report = optimized(tmp_path, normalised(), {"image": generator.normal(0, 9, (80, 3, 8, 8)).astype(np.float32)})
    assert not report.warnings


def test_a_batch_normalization_that_learns_while_it_runs_expects_nothing() -> None:
    proto = normalised()
    assert first_normalization(decode(proto)) is not None
    proto.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    assert first_normalization(decode(proto)) is None


def test_the_report_holds_what_repeats_the_run(tmp_path: Path) -> None:
    images, labels = pictures()
    report = optimized(tmp_path, classifier(), {"images": images, "labels": labels}, mean=MEAN, std=STD)
    assert report.request["options"]["mean"] == list(MEAN)
    assert report.request["timed_shapes"] == {"image": [1, 3, 8, 8]}
    assert "--mean 0.485,0.456,0.406" in report.request["command"] and "--no-bench" in report.request["command"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "d.npz", "recipe": "smallest"}, "--recipe smallest --data d.npz"),
        ({"shapes": {"x": (1, 3)}, "states": {"hn": "h"}}, "--shape x=1x3 --state hn=h"),
        ({"memory": Size(bytes=1e9)}, "--memory 1000000000"),
        ({"budget": Budget(max_size=Size(share=0.3), max_drop=0.01)}, "--max-drop 0.01 --max-size 30%"),
        ({"verify": False}, "--no-verify"),
        ({}, "onnxcomp optimize m.onnx"),
    ],
)
def test_the_command_says_what_was_asked_for(options, words: str) -> None:
    assert words in Job(Path("m.onnx"), **options).request()["command"]


def test_a_search_says_it_before_its_first_trial(tmp_path: Path) -> None:
    images, labels = pictures()
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    model = builders.save(classifier(), tmp_path / "m.onnx")
    with Study.open(Job(model, data=str(tmp_path / "d.npz"))) as study:
        told = source_of(study)["doubts"]
    assert told and "--mean" in told[0]
