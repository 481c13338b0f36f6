"""Does `onnxcomp data check` show what the model sees, score it, and point to a wrong preprocessing?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import click
import numpy as np
import pytest
from builders import model, save, value
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from onnxcomp import optimize
from onnxcomp.cli import options
from onnxcomp.cli.data import command
from onnxcomp.cli.main import main
from onnxcomp.data.inputs import inputs_of
from onnxcomp.data.metric import parse_metric
from onnxcomp.data.open import open_data
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import OutputError
from onnxcomp.job import Job
from onnxcomp.verify.data_check import DataCheck, check_data


def brightness(path: Path) -> Path:
    """A classifier whose class is the channel with the largest mean over the picture."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    inputs = [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    return save(model(nodes, inputs, [value("y", TensorProto.FLOAT, ["n", 3])]), path)


def pictures(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of which one channel is brightest; its number is the label."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, n)
    images = generator.integers(0, 120, (n, 8, 8, 3)).astype(np.uint8)
    images[np.arange(n), :, :, labels] += 100
    return images, labels


def check(
    folder: Path, pre: Preprocess | None = None, labels: np.ndarray | None = None, samples: int | None = None
) -> DataCheck:
    path = brightness(folder / "m.onnx")
    images, own = pictures()
    inputs, metadata = inputs_of(path)
    table = {"images": images, "labels": own if labels is None else labels}

    def open_with(chosen: Preprocess):
        return open_data(table, inputs, preprocess=chosen, metadata=metadata)

    return check_data(path, open_with, pre or Preprocess(), parse_metric(None), samples=samples, sheet=folder / "s.png")


def test_statistics_are_those_of_the_tensor_and_the_score_is_the_models(tmp_path: Path) -> None:
    found = check(tmp_path, Preprocess(mean=(0.1, 0.9, 0.3), std=(2.0,)))
    tensor = (pictures()[0] / 255 - np.array([0.1, 0.9, 0.3])) / 2
    for c, channel in enumerate(found.channels):
        expected = tensor[..., c].min(), tensor[..., c].mean(), tensor[..., c].max(), tensor[..., c].std()
        assert (channel.minimum, channel.mean, channel.maximum, channel.std) == pytest.approx(expected, abs=1e-6)
    assert [c.channel for c in found.channels] == ["0 (R)", "1 (G)", "2 (B)"]
    assert found.answers.of == 3 and found.samples == 60
    assert found.score is not None and found.score < 1


def test_right_preprocessing_scores_and_gets_no_hint(tmp_path: Path) -> None:
    found = check(tmp_path)
    assert found.score == 1.0 and found.metric == "top1" and not found.hints


def test_wrong_colour_order_is_pointed_out(tmp_path: Path) -> None:
    labels = pictures()[1]
    found = check(tmp_path, labels=2 - labels)
    assert found.score is not None and found.score < 0.7
    assert any("--color bgr" in hint and "1.000" in hint for hint in found.hints)


def test_labels_that_count_from_another_number_are_pointed_out(tmp_path: Path) -> None:
    labels = np.maximum(pictures()[1] - 1, 0)
    found = check(tmp_path, labels=labels)
    assert any("higher by 1" in hint for hint in found.hints)


def test_constant_data_are_pointed_out(tmp_path: Path) -> None:
    path = brightness(tmp_path / "m.onnx")
    inputs, _ = inputs_of(path)
    black = np.zeros((4, 8, 8, 3), np.uint8)
    found = check_data(path, lambda p: open_data(black, inputs, preprocess=p), Preprocess(), parse_metric(None))
    assert any("every value" in hint for hint in found.hints) and found.score is None


def test_sheet_shows_the_pictures_as_they_went_in(tmp_path: Path) -> None:
    found = check(tmp_path, Preprocess(color="bgr"))
    assert found.sheet == str(tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    first = pictures()[0][0]
    enlarged = first.repeat(12, 0).repeat(12, 1)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, enlarged.shape)[::1, ::1, 0]
    assert any((windows[y, 8] == enlarged).all() for y in range(30, 80))


def test_part_of_the_samples_is_spread_over_all(tmp_path: Path) -> None:
    assert check(tmp_path, samples=7).samples == 7


def test_sheet_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    path = brightness(tmp_path / "m.onnx")
    inputs, _ = inputs_of(path)
    with pytest.raises(OutputError):
        check_data(
            path,
            lambda p: open_data(pictures()[0], inputs, preprocess=p),
            Preprocess(),
            parse_metric(None),
            sheet=path / "s.png",
        )


# the command


def run(*arguments: object, code: int = 0) -> str:
    try:
        main([str(a) for a in arguments])
    except SystemExit as exit_:
        assert (exit_.code or 0) == code
    return ""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    images, labels = pictures()
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    return brightness(tmp_path / "m.onnx"), tmp_path / "d.npz"


def test_command_prints_statistics_guesses_score_and_writes_the_sheet(files, capsys) -> None:
    run("data", "check", files[0], "--data", files[1])
    told = capsys.readouterr().out
    for words in ("0 (R)", "override with --scale", "top1      1.0000 on 60 samples", "m.data.png"):
        assert words in told, told
    assert Path("m.data.png").is_file()


def test_command_takes_every_flag(files, capsys) -> None:
    np.save("l.npy", np.zeros(60, int))
    flags = "--labels l.npy --shape x=5x3x8x8 --scale 1/127.5 --mean 1 --std 1,1,1 --layout nchw --color rgb"
    more = "--resize stretch --pad-value 3 --samples 20 -o sheet.png -q"
    run("data", "check", files[0], "--data", files[1], *flags.split(), *more.split())
    assert "guess " not in capsys.readouterr().out and Path("sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--data", "none.npz"], 4), (["--data", "m.onnx"], 4), ([], 2), (["--data", "d.npz", "--scale", "x"], 2),
        (["--data", "d.npz", "--resize", "none"], 2), (["--data", "d.npz", "--shape", "x=1x2x"], 2),
        (["--data", "d.npz", "--shape", "y=1"], 2), (["--data", "d.npz", "--labels", "none.npy"], 4),
        (["--data", "d.npz", "--metric", "none.py:f"], 2), (["--data", "d.npz", "-o", "d.npz/s.png"], 6),
    ],
)  # fmt: skip
def test_errors_are_three_lines_and_their_exit_code(files, capsys, arguments: list[str], code: int) -> None:
    run("data", "check", files[0], "-q", *arguments, code=code)
    told = capsys.readouterr().err
    assert "Traceback" not in told and told
    if code != 2:
        assert [line.split(":")[0] for line in told.splitlines()[:1]] == ["error"] and "\ndo:" in told


def test_help_names_every_preprocessing_flag_once() -> None:
    text = CliRunner().invoke(command, ["check", "--help"]).output
    for flag in ("--scale", "--mean", "--std", "--layout", "--color", "--resize", "--pad-value", "--shape", "--metric"):
        assert flag in text, flag


def test_shared_options_reach_a_command() -> None:
    seen: dict[str, object] = {}

    @click.command()
    @options.settings(Job, "data", "labels", "shapes", "eval_samples", "bench", "preprocess", "seed")
    def some(**given: object) -> None:
        seen.update(given)

    arguments = ["--data", "a.npz", "--shape", "x=1x2", "--shape", "y:0=3", "--mean", "1,2,3", "--eval-samples", "7"]
    assert CliRunner().invoke(some, arguments, catch_exceptions=False).exit_code == 0
    assert seen["shapes"] == {"x": (1, 2), "y:0": (3,)} and seen["preprocess"] == Preprocess(mean=(1, 2, 3))
    assert set(seen) == {"data", "labels", "shapes", "eval_samples", "bench", "preprocess", "seed"}
    assert (seen["bench"], seen["eval_samples"], seen["seed"]) == (True, 7, 0)


def test_scores_of_the_assets(assets: Path, tmp_path: Path) -> None:
    inputs, _ = inputs_of(assets / "models" / "lenet5-mnist.onnx")
    found = check_data(
        assets / "models" / "lenet5-mnist.onnx",
        lambda p: open_data(assets / "data" / "mnist-test.npz", inputs, preprocess=p),
        Preprocess(),
        parse_metric(None),
        sheet=tmp_path / "s.png",
        threads=1,
    )
    assert found.score == 0.9932


def detector(path: Path, sure: int = 16) -> Path:
    """Boxes [N, 16, 4] of known places, and scores [N, 16, 2] that are sure of something in pictures of 0..255 only.

    Args:
        sure: how many of the 16 places can hold something.
    """
    y, x = np.mgrid[0:4, 0:4] * 2.0
    corners = np.stack([x.ravel(), y.ravel(), x.ravel() + 1, y.ravel() + 1], axis=1)
    weights = {
        "axes": np.array([1]),
        "corners": corners[None].astype(np.float32),
        "gain": np.where(np.arange(16)[None, :, None] < sure, [0.05, 0.01], 0).astype(np.float32),
        "floor": np.float32(-3.0),
        "none": np.float32(0.0),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Squeeze", ["m", "axes"], ["s"]),
        helper.make_node("Mul", ["s", "gain"], ["g"]),
        helper.make_node("Add", ["g", "floor"], ["l"]),
        helper.make_node("Sigmoid", ["l"], ["scores"]),
        helper.make_node("Mul", ["s", "none"], ["z"]),
        helper.make_node("Add", ["z", "corners"], ["boxes"]),
    ]
    outputs = [value("boxes", TensorProto.FLOAT, ["n", 16, 4]), value("scores", TensorProto.FLOAT, ["n", 16, 2])]
    return save(model(nodes, [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])], outputs, weights), path)


@pytest.mark.parametrize(("pre", "told"), [(Preprocess(), True), (Preprocess(scale=1.0), False)])
def test_a_detector_that_finds_nothing_is_told_what_finds_something(
    pre: Preprocess, told: bool, tmp_path: Path
) -> None:
    path = detector(tmp_path / "m.onnx")
    inputs, metadata = inputs_of(path)

    def open_with(chosen: Preprocess):
        return open_data({"images": pictures()[0]}, inputs, preprocess=chosen, metadata=metadata)

    hints = check_data(path, open_with, pre, parse_metric(None)).hints
    assert [("--scale 1 " in hint, "boxes above 0.25 in 16 pictures, not 0" in hint) for hint in hints] == [
        (True, True)
    ] * told


def few_in(count: int = 30) -> dict[str, np.ndarray]:
    """Pictures of which the first and one of the last are bright enough to hold something."""
    images = builders.rng(2).integers(0, 20, (count, 8, 8, 3)).astype(np.uint8)
    images[[0, -1]] += 100
    return {"images": images}


def test_a_detector_that_finds_little_in_enough_pictures_is_not_doubted_and_its_boxes_are_told(tmp_path: Path) -> None:
    path, data = detector(tmp_path / "m.onnx", sure=1), tmp_path / "d.npz"
    np.savez(data, **few_in())
    asked = ["check", str(path), "--data", str(data), "-o", str(tmp_path / "s.png")]
    shown = CliRunner().invoke(command, [*asked, "--scale", "1", "--mean", "0", "--std", "1"]).output
    assert "boxes     2 above 0.25 in 30 pictures (the float model)" in shown and "hint" not in shown
    shown = CliRunner().invoke(command, asked).output
    assert "boxes     0 above 0.25" in shown and "the detector finds no box above 0.25 in 16 pictures:" in shown


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scale": 1.0, "mean": 0.0, "std": 1.0}, []),
        ({"scale": 1.0}, ["the detector finds 14 boxes above 0.25 in 16 pictures, not 2"]),
        ({}, ["the detector finds no box above 0.25 in 16 pictures"]),
    ],
)
def test_a_run_asks_a_detector_on_as_many_pictures_as_the_check(
    given: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    path = detector(tmp_path / "m.onnx", sure=1)
    report = optimize(path, data=few_in(), output=tmp_path / "o.onnx", passes="cleanup", bench=False, **given)
    doubts = [text for text in report.warnings if "the detector" in text]
    assert [words in text for words, text in zip(told, doubts, strict=True)] == [True] * len(told)


def test_what_a_classifier_says_is_not_counted_as_boxes(tmp_path: Path) -> None:
    assert check(tmp_path).boxes is None


def in_folders(folder: Path, classes: dict[str, int]) -> None:
    """Pictures of some classes, each in a folder."""
    images, labels = pictures()
    for name, number in classes.items():
        (folder / name).mkdir(parents=True)
        for at, picture in enumerate(images[labels == number]):
            Image.fromarray(picture).save(folder / name / f"{at}.png")


@pytest.mark.parametrize("names", [("blue", "green"), ("test", "train")])
def test_fewer_class_folders_than_classes_ask_for_labels_and_say_nothing_of_pixels(
    names: tuple[str, str], tmp_path: Path
) -> None:
    path = brightness(tmp_path / "m.onnx")
    in_folders(tmp_path / "d", dict(zip(names, (2, 1), strict=True)))  # the folders are numbered 0 and 1
    inputs, metadata = inputs_of(path)

    def open_with(chosen: Preprocess):
        return open_data(tmp_path / "d", inputs, preprocess=chosen, metadata=metadata)

    (hint,) = check_data(path, open_with, Preprocess(), parse_metric(None)).hints
    assert hint.startswith("2 class folders, the model has 3 classes:") and "--labels FILE" in hint
    report = optimize(path, data=tmp_path / "d", output=tmp_path / "o.onnx", passes="cleanup", bench=False)
    assert hint in report.warnings and not any("--color" in text for text in report.warnings)


def test_class_folders_that_are_right_are_not_asked_about(tmp_path: Path) -> None:
    path = brightness(tmp_path / "m.onnx")
    in_folders(tmp_path / "d", {"a": 0, "b": 1})  # the first two of three classes
    inputs, _ = inputs_of(path)
    found = check_data(
        path, lambda p: open_data(tmp_path / "d", inputs, preprocess=p), Preprocess(), parse_metric(None)
    )
    assert found.score == 1.0 and not found.hints


def test_two_folders_are_all_classes_of_a_model_that_gives_one_number(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)]
    inputs = [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    path = save(model(nodes, inputs, [value("y", TensorProto.FLOAT, ["n"])]), tmp_path / "m.onnx")
    in_folders(tmp_path / "d", {"a": 0, "b": 1})
    report = optimize(path, data=tmp_path / "d", output=tmp_path / "o.onnx", recipe="clean", bench=False)
    assert not any("class folders, the model" in text for text in report.warnings)
