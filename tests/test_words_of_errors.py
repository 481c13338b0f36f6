"""Do errors and notes say what the reader can act on, in the words of whoever reads them?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcomp
from onnxcomp.api.wording import of_arguments
from onnxcomp.errors import OnnxcompError
from onnxcomp.explanation.causes import _clipped
from onnxcomp.report import html_base
from onnxcomp.verify.opened import Given, Recording

X = np.zeros((8, 1, 8, 8), np.float32)


def half(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m: onnxcomp.optimize(m, data=X, max_drop=0.1),
            (
                "max_drop needs a task metric, and there are neither labels nor a metric",
                "max_drop",
                "give labels (or data that holds them) or metric; min_sqnr needs neither",
            ),
        ),
        (lambda m: onnxcomp.optimize(m, data=X, metric=half), ("", "metric half", "give eval_data")),
        (lambda m: onnxcomp.verify(m, m, X, max_drop=0.1), ("", "max_drop", "")),
        (lambda m: onnxcomp.optimize(m, data="nowhere"), ("there is no file or folder nowhere", "data nowhere", "")),
        (lambda m: onnxcomp.bench(m, batches=(3,), data={"image": X[:2]}), ("batches asks for 3", "", "")),
        (lambda m: onnxcomp.bench(m, m, providers=("nothing",)), ("", "providers", "")),
    ],
)
def test_an_error_names_the_arguments_of_the_function(
    call: Callable[[Path], object], words: tuple[str, str, str], digits: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OnnxcompError) as found:
        call(digits)
    error = found.value
    for told, said in zip(words, (error.what, error.where, error.do), strict=True):
        assert told in said
    assert "--" not in str(error)


def test_flags_of_other_commands_stay_as_they_are() -> None:
    @of_arguments
    def called(threads: int) -> None:
        raise OnnxcompError("--threads 0, --no-bench", where="--shape x=1", do="onnxcomp doctor --setup-training")

    with pytest.raises(OnnxcompError) as found:
        called(1)
    assert str(found.value) == "threads 0, bench=False\nshapes x=1\nonnxcomp doctor --setup-training"


def test_a_reader_that_is_interrupted_ends_quietly_after_its_recording_was_closed() -> None:
    recording = Recording()
    for value in range(3):
        recording.add(Given({"y": np.full(2, value)}))
    reader = recording.replay()
    next(reader)
    recording.close()
    reader.close()  # raised ValueError: I/O operation on closed file


@pytest.mark.parametrize(("beyond", "words"), [(0.5, "calibrate on samples like these"), (0.01, "minmax")])
def test_a_range_that_saw_other_samples_is_told_from_one_that_a_method_chose(beyond: float, words: str) -> None:
    from types import SimpleNamespace as Such

    fed = Such(beyond=beyond * 1000, count=1000, low=-2.0, high=2.0)
    finding: Any = Such(fed=fed, pair=Such(entry=(None, Such(low=-1.0, high=1.0))))
    cause = _clipped(finding)
    assert cause is not None and words in cause.remedy


def test_a_table_says_what_becomes_of_it_on_a_narrow_screen() -> None:
    for narrow in ("cards", "remarks"):
        made = html_base.table(["", "before"], [["size", "1 kB"]], narrow=narrow)
        assert f'class="scroll {narrow}"' in made and ('data-of="before"' in made) == (narrow == "cards")
