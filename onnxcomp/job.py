"""What is one run asked to do? The fields of one dataclass, from which the keys of the configuration come too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxcomp.data.preprocess import Preprocess
from onnxcomp.verify.budget import Budget

if TYPE_CHECKING:
    from onnxcomp.manager.pipeline import Pipeline

Objective = Literal["latency", "size", "accuracy", "macs"]
Target = Literal["cpu", "cuda", "tensorrt"]
# what a field names: a file or function that is read, a file that is written, or nothing outside of itself
Place = Literal["input", "data", "function", "output", ""]


def _about(help_text: str, place: Place = "", *, key: str = "", minimum: int | None = None) -> dict[str, Any]:
    return {"help": help_text, "place": place, "key": key, "minimum": minimum}


@dataclass(frozen=True)
class Job:
    """What one run is asked to do; the command line's flags and the configuration's keys under the same names.

    `data` and `eval_data` are whatever `onnxcomp.data.open.open_data` takes, `labels` and `eval_labels` too. Each
    field's metadata has its help text, what it names outside of the job, and its key where that is not its name.
    """

    model: Path = field(metadata=_about("The model to compress; never written.", "input", key="path"))
    output: Path | None = field(default=None, metadata=_about("The result; NAME.opt.onnx if not given.", "output"))
    passes: str | Pipeline | None = field(
        default=None, metadata=_about("The passes to run, as a spec: name{option=value,...},name.")
    )
    recipe: str | None = field(
        default=None, metadata=_about("A named pipeline; with neither passes nor recipe several are tried.")
    )
    teacher: Path | None = field(
        default=None, metadata=_about("The model that distill learns from; the model itself if not given.", "input")
    )
    data: Any = field(
        default=None,
        metadata=_about(
            "Samples: .npz, .npy, a folder of images or of test_data_set_N, or module.py:function that yields dicts.",
            "data",
        ),
    )
    labels: Any = field(default=None, metadata=_about("Labels of data, .npy or .csv, where it carries none.", "input"))
    eval_data: Any = field(default=None, metadata=_about("Samples that judge; without it a part of data does.", "data"))
    eval_labels: Any = field(default=None, metadata=_about("Labels of eval_data, .npy or .csv.", "input"))
    metric: str | None = field(
        default=None,
        metadata=_about("The task's metric, module.py:function[:min]; top-1 where labels are given.", "function"),
    )
    calib_samples: int = field(
        default=512, metadata=_about("Samples for calibration; at most half of data.", minimum=1)
    )
    eval_samples: int | None = field(
        default=None, metadata=_about("Judge on at most so many samples; all if not given.", minimum=1)
    )
    shapes: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict, metadata=_about("Sizes for an input's free dimensions, by input.")
    )
    preprocess: Preprocess = field(
        default_factory=Preprocess, metadata=_about("How raw pictures become the model's input.")
    )
    allow_random: bool = field(default=False, metadata=_about("Calibrate on made-up samples if there is no data."))
    target: Target = field(default="cpu", metadata=_about("Where the model will run."))
    objective: Objective = field(default="latency", metadata=_about("What should get better."))
    budget: Budget = field(default_factory=Budget, metadata=_about("What the result must keep."))
    report: Path | None = field(
        default=None, metadata=_about("The report as JSON; NAME.opt.json beside the model if not given.", "output")
    )
    html: Path | None = field(default=None, metadata=_about("The report as a page for people.", "output"))
    seed: int = field(default=0, metadata=_about("For the split and everything drawn at random."))
    threads: int = field(
        default=0,
        metadata=_about(
            "Threads for calibration and verification, 0: every core; latency is measured with one.", minimum=0
        ),
    )
    bench: bool = field(default=True, metadata=_about("Measure latency."))
    cost_table: Path | None = field(
        default=None,
        metadata=_about(
            "Times that decide placements and recipes: replayed, new ones added; the user's cache.", "input"
        ),
    )
    bench_seconds: float = field(default=4.0, metadata=_about("How long to measure the final latency, in seconds."))
    verify: bool = field(default=True, metadata=_about("Run the result against the original."))
    keep_initializer_inputs: bool = field(
        default=False, metadata=_about("Leave weights listed as graph inputs among the inputs.")
    )

    @property
    def out(self) -> Path:
        """Where the result goes: NAME.opt.onnx in the current directory where nothing else is asked for."""
        return self.output or Path(f"{self.model.stem}.opt.onnx")

    @property
    def rejected(self) -> Path:
        """Where a result goes that missed its budget: NAME.rejected.onnx beside `out`, NAME being that of `out`."""
        return self.out.with_name(f"{self.out.name.removesuffix('.onnx').removesuffix('.opt')}.rejected.onnx")

    @property
    def report_path(self) -> Path:
        """Where report.json goes: beside the result where nothing else is asked for."""
        return self.report or self.out.with_name(f"{self.out.name.removesuffix('.onnx')}.json")

    def options(self) -> dict[str, Any]:
        """JSON-ready: every option that may decide how the result looks; no files and places, those have hashes."""
        found: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.metadata["place"]:
                continue
            if dataclasses.is_dataclass(value) and item.name in ("preprocess", "budget"):
                value = dataclasses.asdict(value)  # type: ignore[arg-type]
            found[item.name] = str(value) if item.name == "passes" and value is not None else value
        return found

    def options_sha256(self) -> str:
        """Hash of `options`, the same on every machine."""
        return hashlib.sha256(json.dumps(self.options(), sort_keys=True).encode()).hexdigest()
