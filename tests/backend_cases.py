"""How does onnx's own backend test suite fare on its way through load, passes and save? One outcome a case.

The tests assert the outcomes, and `python tests/backend_cases.py docs/backend-suite.md` writes the table of the docs.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.manager.guarantee import ROUNDINGS, coarsest_step, interface_of, relative_error
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.runtime.session import open_session

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
EXACT, CLOSE = "fold-constants,cleanup", "fuse-batchnorm"
TOLERANCE = 1e-4

# in the order of the table; each case ends in one of them, and anything else fails the test
IDENTICAL = "ONNX Runtime: outputs bit-equal"
ROUNDED = "ONNX Runtime: outputs equal but for where it rounds half precision"
NEARLY = "ONNX Runtime: outputs equal within 1e-4, a BatchNormalization was fused"
DRAWN = "ONNX Runtime: outputs drawn at random, types and shapes equal"
REFERENCE = "not run by ONNX Runtime: outputs bit-equal by onnx's reference implementation"
SAME = "not run by either: nothing to change, saved message for message"
KEPT = "not run by either: changed; structure and interface kept"
REFUSED = "refused with a reason"
OUTCOMES = (IDENTICAL, ROUNDED, NEARLY, DRAWN, REFERENCE, SAME, KEPT, REFUSED)
RUN = OUTCOMES[:5]


@dataclass(frozen=True)
class Case:
    """One case of the suite: a model, feeds and what they should give; both empty where the suite has none."""

    kind: str
    name: str
    model: onnx.ModelProto
    sets: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Result:
    """How a case fared; `expected`: the suite's own expected outputs came out, of the original and of the result."""

    kind: str
    name: str
    outcome: str
    expected: bool
    changes: int
    why: str = ""


@cache
def node_cases() -> list[Any]:
    """The operator cases, which onnx makes on import; takes seconds."""
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(node.collect_testcases(None), key=lambda case: case.name)


def node_case(case: Any) -> Case:
    sets = tuple((list(inputs), list(outputs)) for inputs, outputs in case.data_sets)
    return Case("operators", case.name, case.model, sets, case.rtol, case.atol)


def model_cases() -> Iterator[Case]:
    """The simple, PyTorch and light models."""
    from onnx.backend.test.case import model
    from onnx.backend.test.loader import load_model_tests

    made = {case.name: case for case in model.collect_testcases()}
    for kind in ("simple", "pytorch-operator", "pytorch-converted", "real"):
        for case in sorted(load_model_tests(kind=kind), key=lambda c: c.name):
            made.pop(case.name, None)
            if kind == "real":
                yield light_case(case)
            else:
                folder = Path(case.model_dir)
                proto = onnx.load(folder / "model.onnx")
                sets = tuple(stored_set(proto, part) for part in sorted(folder.glob("test_data_set_*")))
                yield Case(kind, case.name, proto, sets, case.rtol, case.atol)
    for name, case in sorted(made.items()):
        if case.model is not None:
            yield Case("simple", name, case.model, tuple((list(a), list(b)) for a, b in case.data_sets), 1e-3, 1e-7)


def light_case(case: Any) -> Case:
    """A well-known network whose weights are made up in the graph; the suite feeds it one ramp."""
    path = DATA.parents[3] / case.url
    proto = onnx.load(path)
    stored = {t.name for t in proto.graph.initializer}
    feeds = []
    for entry in proto.graph.input:
        if entry.name not in stored:
            shape = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
            feeds.append((np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32))
    expected = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return Case("light", case.name, proto, ((feeds, [numpy_helper.to_array(expected)]),), case.rtol, case.atol)


def stored_set(proto: onnx.ModelProto, folder: Path) -> tuple[list[Any], list[Any]]:
    def read(prefix: str, ports: Sequence[onnx.ValueInfoProto]) -> list[Any]:
        count = len(list(folder.glob(f"{prefix}_*.pb")))
        return [
            value_of(port, (folder / f"{prefix}_{i}.pb").read_bytes())
            for i, port in zip(range(count), ports, strict=False)
        ]

    return read("input", proto.graph.input), read("output", proto.graph.output)


def value_of(port: onnx.ValueInfoProto, data: bytes) -> Any:
    if port.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if port.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


# -- one case --------------------------------------------------------------------------------------------------


def run_case(case: Case, folder: Path) -> Result:
    """Load, run the exact and the close passes, save, and hold the saved model against the original."""
    path, out = folder / "model.onnx", folder / "out.onnx"
    path.write_bytes(case.model.SerializeToString())

    def result(outcome: str, *, expected: bool = False, changes: int = 0, why: str = "") -> Result:
        return Result(case.kind, case.name, outcome, expected, changes, why)

    try:
        graph = io.load(path)
    except ModelError as error:
        assert error.what and error.where and error.do
        return result(REFUSED, why=error.what)
    check_round_trip(case.model)
    try:
        done = PassManager(Pipeline.parse(f"{EXACT},{CLOSE}"), verify=False).run(graph)
    except ModelError as error:
        return result(REFUSED, why=error.what)
    io.save(done.graph, out)
    assert interface_of(io.load(out)) == interface_of(graph)
    changes = done.changes
    runs = [outputs_of(path, case.model, inputs) for inputs, _ in case.sets]
    refusals = [run for run in runs if isinstance(run, str)]
    if refusals or not runs:
        return result(without_runtime(case, path, out, changes), changes=changes, why=(refusals or ["no data"])[0])
    after = [outputs_of(out, case.model, inputs) for inputs, _ in case.sets]
    assert not any(isinstance(run, str) for run in after), f"{case.name}: the saved model no longer runs: {after}"
    outcome = judged(case, path, done, runs, after)
    if outcome == DRAWN:
        return result(DRAWN, changes=changes)
    wanted, kept = (
        all(close_to(case, run, expected) for run, (_, expected) in zip(which, case.sets, strict=True))
        for which in (runs, after)
    )
    assert kept or not wanted, f"{case.name}: the suite's expected outputs no longer come out"
    return result(outcome, expected=wanted, changes=changes)


def judged(case: Case, path: Path, done: RunResult, runs: list[Any], after: list[Any]) -> str:
    """The outcome of a case that ONNX Runtime runs before and after."""
    error = max(compare(a, b) for a, b in zip(runs, after, strict=True))
    if not error:
        return IDENTICAL
    if drawn(path, case, runs):
        assert shapes(runs) == shapes(after), f"{case.name}: types or shapes changed"
        return DRAWN
    if coarsest_step(done.graph):
        assert error <= ROUNDINGS * coarsest_step(done.graph), f"{case.name}: outputs differ by {error:.3g}"
        return ROUNDED
    fused = any(record.changes for record in done.records if record.name == CLOSE)
    assert error <= (TOLERANCE if fused else 0), f"{case.name}: outputs differ by {error:.3g} of their range"
    return NEARLY


def without_runtime(case: Case, path: Path, out: Path, changes: int) -> str:
    """The outcome of a case that ONNX Runtime cannot run."""
    if not changes:
        return SAME
    for inputs, _ in case.sets:
        before = reference_outputs(path, case.model, inputs)
        if before is None:
            return KEPT
        after = reference_outputs(out, case.model, inputs)
        assert after is not None and compare(before, after) == 0, f"{case.name}: outputs differ by the reference"
    return REFERENCE if case.sets else KEPT


def reference_outputs(path: Path, proto: onnx.ModelProto, inputs: list[Any]) -> list[Any] | None:
    """Outputs by onnx's reference implementation; None where it has a gap."""
    from onnx.reference import ReferenceEvaluator

    stored = {t.name for t in proto.graph.initializer}
    names = [entry.name for entry in proto.graph.input if entry.name not in stored]
    feeds = {name: None if value is None else array(value) for name, value in zip(names, inputs, strict=False)}
    try:
        return list(ReferenceEvaluator(str(path)).run(None, feeds))
    except Exception:  # whatever its numpy code stumbles over
        return None


def check_round_trip(proto: onnx.ModelProto) -> None:
    """Loading and saving changes nothing but where weights are listed as inputs."""
    from onnx_ir.testing import assert_onnx_proto_equal

    wanted = onnx.ModelProto()
    wanted.CopyFrom(proto)
    stored = {t.name for t in proto.graph.initializer}
    if any(entry.name in stored for entry in proto.graph.input):
        kept = [entry for entry in proto.graph.input if entry.name not in stored]
        del wanted.graph.input[:]
        wanted.graph.input.extend(kept)
        wanted.ir_version = max(proto.ir_version, 4)
    assert_onnx_proto_equal(encode(decode(proto)), wanted)


def outputs_of(path: Path, proto: onnx.ModelProto, inputs: list[Any]) -> list[Any] | str:
    """Outputs by ONNX Runtime, unoptimized; why not, where it cannot run or be fed."""
    stored = {t.name for t in proto.graph.initializer}
    names = [entry.name for entry in proto.graph.input if entry.name not in stored]
    feeds = {name: array(value) for name, value in zip(names, inputs, strict=False) if value is not None}
    try:
        session = open_session(path, optimize=False)
        return list(session.run(feeds).values())
    except (ModelError, DataError) as error:
        return error.what.replace(str(path), path.name)
    except (TypeError, ValueError, RuntimeError) as error:  # values that its Python binding cannot take
        return f"cannot be fed: {type(error).__name__}"


def array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return [array(v) for v in value] if isinstance(value, list | tuple) else np.asarray(value)


def drawn(path: Path, case: Case, first: list[list[Any]]) -> bool:
    """Whether the original gives other values in a second run."""
    again = [outputs_of(path, case.model, inputs) for inputs, _ in case.sets]
    return any(isinstance(b, str) or compare(a, b) > 0 for a, b in zip(first, again, strict=True))


def shapes(value: Any) -> Any:
    if isinstance(value, list):
        return [shapes(v) for v in value]
    return (str(value.dtype), value.shape) if isinstance(value, np.ndarray) else type(value).__name__


def compare(a: Any, b: Any) -> float:
    """0 where bit-equal, else the largest error relative to the range; infinite where types or shapes differ."""
    if shapes(a) != shapes(b):
        return float("inf")
    if isinstance(a, list):
        return max((compare(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if not isinstance(a, np.ndarray):
        return 0.0 if repr(a) == repr(b) else float("inf")
    if a.dtype == object:
        return 0.0 if np.array_equal(a, b) else float("inf")
    return 0.0 if a.tobytes() == b.tobytes() else max(relative_error(a, b), 1e-30)


def close_to(case: Case, values: list[Any], expected: list[Any]) -> bool:
    """Whether outputs are what the suite expects, by its own measure."""
    try:
        for got, wanted in zip(values, expected, strict=False):
            _same(case, got, array(wanted))
    except (AssertionError, TypeError, ValueError):
        return False
    return bool(expected)


def _same(case: Case, got: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        for g, w in zip(got, wanted, strict=True):
            _same(case, g, w)
    elif wanted.dtype == object:
        np.testing.assert_array_equal(got, wanted)
    else:
        rtol = max(case.rtol, 2**-6) if wanted.dtype.name == "bfloat16" else case.rtol
        np.testing.assert_allclose(
            np.asarray(got, np.float64), np.asarray(wanted, np.float64), rtol=rtol, atol=case.atol
        )


# -- the table -------------------------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    """Markdown: outcomes by kind of case."""
    kinds = list(dict.fromkeys(r.kind for r in results))
    counts = Counter((r.kind, r.outcome) for r in results)
    lines = ["| outcome | " + " | ".join(kinds) + " | all |", "|---|" + "---:|" * (len(kinds) + 1)]
    for outcome in OUTCOMES:
        row = [counts[kind, outcome] for kind in kinds]
        if not any(row):
            continue
        lines.append(f"| {outcome} | " + " | ".join(map(str, row)) + f" | {sum(row)} |")
    total = [sum(r.kind == kind for r in results) for kind in kinds]
    lines.append("| **cases** | " + " | ".join(map(str, total)) + f" | {len(results)} |")
    changed = [sum(r.kind == kind and r.changes > 0 for r in results) for kind in kinds]
    lines.append("| of these, changed by the passes | " + " | ".join(map(str, changed)) + f" | {sum(changed)} |")
    met = [sum(r.kind == kind and r.expected for r in results) for kind in kinds]
    lines.append("| the suite's expected outputs come out | " + " | ".join(map(str, met)) + f" | {sum(met)} |")
    return "\n".join(lines)


def page(results: Sequence[Result]) -> str:
    """The page of the docs."""
    import onnxruntime

    reasons = Counter(r.why.split(":")[0] for r in results if r.outcome not in RUN[:4])
    why = "\n".join(f"- {count}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    return PAGE.format(
        onnx=onnx.__version__,
        runtime=onnxruntime.__version__,
        passes=f"{EXACT},{CLOSE}",
        table=table(results),
        why=why,
    )


PAGE = """# onnx's backend test suite

Every case of `onnx.backend.test` ({onnx}) goes through load, `{passes}` and save. The saved model is held against the
original on the suite's inputs, by ONNX Runtime {runtime} without its optimizations; where that has no kernel, or the
case is newer than it, by onnx's reference implementation. `tests/test_backend_suite.py` checks all of it on every run;
`python tests/backend_cases.py docs/backend-suite.md` writes this page.

{table}

Where ONNX Runtime's outputs are not the suite's expected ones, they were not before the passes either.

Why ONNX Runtime did not run a case, or why it was refused:

{why}
"""


def all_results() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        results = [run_case(node_case(case), Path(folder)) for case in node_cases()]
        return results + [run_case(case, Path(folder)) for case in model_cases()]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(all_results()), encoding="utf-8")
