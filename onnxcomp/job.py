"""What is one run asked to do? The fields of one dataclass, from which the keys of the configuration come too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxcomp.data.preprocess import Preprocess
from onnxcomp.settings import Setting, setting, settings_of
from onnxcomp.targets import table as targets
from onnxcomp.verify.budget import Budget, Size

if TYPE_CHECKING:
    from onnxcomp.data.metric import MetricSource
    from onnxcomp.manager.pipeline import Pipeline

Objective = Literal["latency", "size", "accuracy", "macs"]


@dataclass(frozen=True)
class Job:
    """What one run is asked to do; the command line's flags and the configuration's keys under the same names.

    `data` and `eval_data` are whatever `onnxcomp.data.open.open_data` takes, `labels` and `eval_labels` too. Each
    field's metadata has its help text, what it names outside of the job, and its key where that is not its name.
    """

    model: Path = setting("The model to compress; never written.", place="input", key="path")
    output: Path | None = setting(
        "The result; NAME.opt.onnx if not given.", default=None, place="output", flag="-o/--output", group="First"
    )
    passes: str | Pipeline | None = setting(
        "The passes to run, as a spec: name{option=value,...},name; `onnxcomp passes` lists them.",
        default=None,
        metavar="SPEC",
        group="First",
        takes="Passes",
    )
    recipe: str | None = setting(
        "A named pipeline, or an aim that is reached step by step: smallest, fastest, balanced, safest; with neither "
        "passes nor recipe several are tried.",
        default=None,
        metavar="NAME",
        group="First",
    )
    plan: Path | None = setting(
        "A plan to follow, which form each layer takes: the file that mixed-precision wrote beside its report, edited.",
        default=None,
        place="input",
        metavar="FILE",
        group="First",
    )
    teacher: Path | None = setting(
        "The model that distill learns from; the model itself if not given.",
        default=None,
        place="input",
        group="Training",
        takes="Model",
    )
    data: Any = setting(
        "Samples: .npz, .npy, a folder of images or of test_data_set_N, or module.py:function that yields dicts.",
        default=None,
        place="data",
        metavar="D",
        group="First",
        takes="Source",
    )
    labels: Any = setting(
        "Labels of data, .npy or .csv, where it carries none.",
        default=None,
        place="input",
        metavar="L",
        group="First",
        takes="LabelSource",
    )
    eval_data: Any = setting(
        "Samples that judge; without it a part of data does.",
        default=None,
        place="data",
        metavar="D",
        group="First",
        takes="Source",
    )
    eval_labels: Any = setting(
        "Labels of eval_data, .npy or .csv.",
        default=None,
        place="input",
        metavar="L",
        group="Judging",
        takes="LabelSource",
    )
    metric: MetricSource | None = setting(
        "The task's metric, (outputs, labels) -> number, :min where lower is better; top-1 where labels are given.",
        default=None,
        place="function",
        metavar="module.py:function[:min]",
        group="Judging",
        takes="MetricSource",
    )
    task: str | None = setting(
        "What the outputs are: classes, decisions, tokens, pixels, ctc, boxes, embeddings, regression or state; or "
        "OUTPUT=KIND,...; guessed if not given.",
        default=None,
        metavar="KIND",
        group="Judging",
    )
    calib_samples: int = setting(
        "Samples for calibration; at most half of data.", default=512, minimum=1, group="Samples"
    )
    eval_samples: int | None = setting(
        "Judge on so many samples; if not given on all, but a run without eval-data ends once its limits are decided.",
        default=None,
        minimum=1,
        group="Judging",
    )
    shapes: Mapping[str, tuple[int, ...]] = setting(
        "Sizes for an input's free dimensions, by input.",
        factory=dict,
        flag="--shape",
        metavar="NAME=1x3x224x224",
        group="Samples",
        takes="Mapping[str, Sequence[int]]",
    )
    states: Mapping[str, str] = setting(
        "Of a stateful model: this output is this input of the next step; guessed from names if not given.",
        factory=dict,
        flag="--state",
        metavar="OUT=IN",
        group="Samples",
    )
    preprocess: Preprocess = setting("How raw pictures become the model's input.", factory=Preprocess, group="Pictures")
    allow_random: bool = setting("Calibrate on made-up samples if there is no data.", default=False, group="Samples")
    target: str = setting("Where the model will run.", default="cpu", group="First", choices=targets.names)
    objective: Objective = setting("What should get better.", default="latency", group="First")
    budget: Budget = setting("What the result must keep.", factory=Budget, group="First")
    report: Path | None = setting(
        "The report as JSON; NAME.opt.json beside the model if not given.",
        default=None,
        place="output",
        group="Output",
    )
    html: Path | None = setting(
        "The report as a page for people, a file of its own.", default=None, place="output", group="Output"
    )
    seed: int = setting("For the split and everything drawn at random.", default=0, minimum=0, maximum=2**63 - 1)
    threads: int = setting(
        "Threads for calibration and verification, 0: every core; latency is measured with one.", default=0, minimum=0
    )
    memory: Size | None = setting(
        "What the run may take beside the models: 4GB, 25% of the machine's; 2 GiB, and never more than half of it.",
        default=None,
        metavar="S",
    )
    bench: bool = setting(
        "Measure latency.",
        default=True,
        off="Do not measure latency; without --cost-table no time decides either, and the model may be another.",
    )
    cost_table: Path | None = setting(
        "Times that decide placements and recipes: replayed, new ones added; the user's cache if not given.",
        default=None,
        place="input",
    )
    bench_seconds: float = setting(
        "How long to measure the final latency, in seconds.", default=4.0, above=0, maximum=3600
    )
    verify: bool = setting(
        "Run the result against the original.",
        default=True,
        off="Do not run the result against the original.",
        group="Judging",
    )
    keep_initializer_inputs: bool = setting("Leave weights listed as graph inputs among the inputs.", default=False)

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

    @property
    def plan_path(self) -> Path | None:
        """Where the plan goes that a run decided: beside the result; nowhere where one is followed."""
        name = f"{self.out.name.removesuffix('.onnx')}.plan.toml"
        return None if self.plan is not None else self.out.with_name(name)

    def options(self) -> dict[str, Any]:
        """JSON-ready: every option that may decide how the result looks; no files and places, those have hashes."""
        found: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.metadata["place"]:
                continue
            if dataclasses.is_dataclass(value) and item.name in ("preprocess", "budget"):
                value = dataclasses.asdict(value)  # type: ignore[arg-type]
            if item.name == "memory":
                value = _plain(value)
            found[item.name] = str(value) if item.name == "passes" and value is not None else value
        return found

    def request(self) -> dict[str, Any]:
        """JSON-ready: everything that was asked for, and the command that asks for it again."""
        words = ["onnxcomp", "optimize", str(self.model), *self.flags()]
        return {"command": shlex.join(words), "options": {i.field: _plain(value) for i, value in self._asked()}}

    def flags(self) -> list[str]:
        """What was asked for beside the model, as the command line takes it."""
        return [word for item, value in self._asked() for word in _words(item, value)]

    def _asked(self) -> list[tuple[Setting, Any]]:
        """The settings that were given, each with its value."""
        given = {item.field: getattr(self, item.field) for item in _flat(Job)}
        given |= {item.field: getattr(self.preprocess, item.field) for item in settings_of(Preprocess)}
        given |= {item.field: getattr(self.budget, item.field) for item in settings_of(Budget)}
        asked = [i for i in _all_settings() if i.field != "model" and _differs(given[i.field], _default(i))]
        return [(item, given[item.field]) for item in asked]

    def options_sha256(self) -> str:
        """Hash of `options`, the same on every machine; how many threads share the work decides nothing.

        Nor does it tell how the passes came about: what ran stands beside the hash, and a configuration that names the
        passes that a recipe chose makes the same file.
        """
        deciding = {key: value for key, value in self.options().items() if key not in ("threads", "passes", "recipe")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _flat(owner: type[Any]) -> list[Setting]:
    return [item for item in settings_of(owner) if not item.holds_settings]


def _all_settings() -> list[Setting]:
    return [*_flat(Job), *settings_of(Preprocess), *settings_of(Budget)]


def _default(item: Setting) -> Any:
    declared = item.owner.__dataclass_fields__[item.field]
    return declared.default_factory() if declared.default_factory is not dataclasses.MISSING else declared.default


def _differs(value: Any, default: Any) -> bool:
    """Whether a setting was given; the library's callers give arrays, which cannot be compared with None."""
    return value is not default and (type(value) is not type(default) or bool(value != default))


def _words(item: Setting, value: Any) -> list[str]:
    """A setting as the command line takes it; what only the library takes stands as it prints itself."""
    flag = item.flag.split("/")[-1]
    if isinstance(value, bool):
        return [flag]
    if isinstance(value, Mapping):
        return [word for name, part in value.items() for word in (flag, f"{name}={_text(part, 'x')}")]
    return [flag, _text(value, ",")]


def _text(value: Any, between: str) -> str:
    if isinstance(value, tuple):
        return between.join(_text(part, between) for part in value)
    return repr(value) if isinstance(value, float) else str(_plain(value))


def _plain(value: Any) -> Any:
    """JSON-ready; arrays and functions that only the library takes are named, not repeated."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Size):
        return f"{100 * value.share:g}%" if value.share is not None else f"{value.bytes:.0f}"
    if isinstance(value, Mapping) and all(isinstance(part, str | tuple) for part in value.values()):
        return {str(name): list(part) if isinstance(part, tuple) else part for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path) or type(value).__name__ == "Pipeline":
        return str(value)
    return f"a {type(value).__name__} given by the library's caller"
