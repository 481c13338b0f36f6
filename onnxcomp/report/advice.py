"""What would a person try next, given a report? Commands to copy, each with the reason for it."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from onnxcomp.data.preprocess import Preprocess
from onnxcomp.manager.spelling import exactly, format_value
from onnxcomp.results import Report

MOST_LAYERS = 3  # that are named to be kept float
QUALITY = {"max_drop", "min_sqnr", "min_agreement"}


@dataclass(frozen=True)
class Step:
    """A command, and why it is worth a try."""

    why: str
    command: str


def next_steps(report: Report) -> list[Step]:
    """Steps that answer what this run missed; for an accepted one, how to keep it so."""
    missed = {line.name for line in report.budget if not line.passed}
    options: dict[str, Any] = report.request.get("options", {})
    data = options.get("data")
    if not report.request:
        return []
    steps = []
    if report.output is not None and missed & QUALITY and data:
        steps.append(_explained(report, str(data)))
        steps += _kept_float(report)
    if "max_size" in missed:
        words = {"passes": "fuse-batchnorm,quantize-weights{bits=4}", "objective": "size"}
        steps.append(Step("Fewer bits make a smaller file; speed is another matter.", _again(report, words)))
    if "min_speedup" in missed:
        steps.append(
            Step("See which nodes take the time, and where they run.", _command("inspect", report.source.path))
        )
    if report.verdict == "unchanged" and options.get("objective", "latency") != "size":
        steps.append(
            Step("Nothing was faster here; it may still be made smaller.", _again(report, {"objective": "size"}))
        )
    if not data:
        steps.append(
            Step(
                "Real samples allow int8 activations, and show whether the model is still right.",
                _again(report, {"data": "SAMPLES"}),
            )
        )
    if report.verdict == "accepted" and report.output is not None:
        config = _again(report, {"save_config": "onnxcomp.toml"})
        steps.append(Step("Keep it: as a build step it is made again whenever something changes.", config))
        if data:
            steps.append(_explained(report, str(data)))
    return steps


def _explained(report: Report, data: str) -> Step:
    assert report.output is not None
    return Step(
        "See which layers lose most, why, and what to do about each.",
        _command("explain", report.source.path, report.output.path, "--data", data, *_preprocessing(report)),
    )


def _preprocessing(report: Report) -> list[str]:
    """How pictures became the input in this run, as flags: another command has to see them in the same way."""
    words = shlex.split(report.request["command"])
    flags = {_flag(item.name) for item in dataclasses.fields(Preprocess)}
    return [word for at, word in enumerate(words) if word in flags or (at and words[at - 1] in flags)]


def _kept_float(report: Report) -> list[Step]:
    """The same passes with the worst layers left as they were, where one of them is a quantizer."""
    worst = sorted((x for x in report.layers if x.own_sqnr_db is not None), key=lambda x: x.own_sqnr_db or 0.0)
    record = next((r for r in report.passes if r.name == "quantize-qdq" and r.changes), None)
    if record is None or not worst or "exclude" in record.spec:
        return []
    names = format_value(tuple(exactly(layer.node) for layer in worst[:MOST_LAYERS]))
    body = record.spec.partition("{")[2].removesuffix("}")
    spec = f"quantize-qdq{{{body + ',' if body else ''}exclude={names}}}"
    passes = ",".join(spec if r is record else r.spec for r in report.passes if r.changes)
    return [Step("Leave the layers with the largest error in float.", _again(report, {"passes": passes}))]


def _again(report: Report, changed: dict[str, str]) -> str:
    """The command of this run with some options set otherwise; a recipe goes where passes are named."""
    words = shlex.split(report.request["command"])
    dropped = {_flag(name) for name in changed} | ({"--recipe"} if "passes" in changed else set())
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in dropped:
            skip = True
        else:
            kept.append(word)
    return shlex.join([*kept, *(part for name, value in changed.items() for part in (_flag(name), value))])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _command(*words: str) -> str:
    return shlex.join(["onnxcomp", *words])
