"""Is a target really one file? No name is asked for elsewhere, packages add theirs, and OpenVINO runs for real."""

from __future__ import annotations

import ast
from importlib.metadata import EntryPoint
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from test_architecture import MODULES

import onnxcomp
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph
from onnxcomp.recipes import candidates
from onnxcomp.runtime.latency import compare
from onnxcomp.runtime.openvino import OpenVINOSession, kernels, usability
from onnxcomp.runtime.session import open_session
from onnxcomp.targets import table
from onnxcomp.targets.base import Target
from onnxcomp.targets.cpu import TARGET as CPU
from onnxcomp.verify import compilers

HOMES = ("onnxcomp.targets", "onnxcomp.runtime")  # providers of a runtime are the runtime's own affair
openvino = pytest.mark.skipif(not usability().usable, reason=f"OpenVINO does not run here: {usability().reason}")


def some_graph(folder: Path) -> Graph:
    return load(builders.save(builders.mlp(), folder / "m.onnx"))


def asked(tree: ast.Module) -> list[int]:
    """Lines that compare something with the name of a target."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            values = {part.value for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)}
            if values & set(table.BUILT_IN):
                found.append(node.lineno)
    return found


def test_no_module_asks_for_a_targets_name() -> None:
    outside = [module for module in MODULES if not module.name.startswith(HOMES)]
    assert {module.name: lines for module in outside if (lines := asked(module.tree))} == {}


def test_the_search_for_names_finds_them() -> None:
    assert asked(ast.parse("if target == 'cpu':\n    pass\nx = context.target in ('cuda', y)")) == [1, 3]


@pytest.mark.parametrize("name", table.BUILT_IN)
def test_each_record_bears_the_name_of_its_file(name: str, tmp_path: Path) -> None:
    target = table.find(name)
    assert target.name == name
    graph = some_graph(tmp_path)
    tried = [recipe.name for recipe in candidates(graph, has_data=True, objective="size", target=name)]
    assert set(tried) >= set(target.recipes) and tried[-1] == "clean"


def test_a_target_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="no target 'gpu'") as told:
        table.find("gpu")
    assert "openvino" in told.value.do


# what an installed package would hold
HEXAGON = Target(name="hexagon", kernels=CPU.kernels, levels=CPU.levels, symmetric=True, moves={})
NO_TARGET = "hexagon"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch):
    """Entry points as if packages were installed that hold them."""

    def install(**entries: str) -> None:
        found = [EntryPoint(name, value, table.ENTRY_POINT_GROUP) for name, value in entries.items()]
        monkeypatch.setattr(table, "entry_points", lambda group: found)
        forget()

    def forget() -> None:
        table.find.cache_clear()
        table._added.cache_clear()

    yield install
    forget()


def test_packages_add_targets(packages, tmp_path: Path) -> None:
    packages(hexagon=f"{__name__}:HEXAGON")
    assert table.names()[-1] == "hexagon"
    assert table.find("hexagon") is HEXAGON
    tried = candidates(some_graph(tmp_path), has_data=True, objective="latency", target="hexagon")
    assert [recipe.name for recipe in tried] == ["clean"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hexagon", f"{__name__}:NO_TARGET", "is no Target named 'hexagon'"),
        ("other", f"{__name__}:HEXAGON", "is no Target named 'other'"),
        ("hexagon", "no_such_package:T", "cannot be loaded"),
    ],
)
def test_a_package_whose_target_is_none_is_named(packages, name: str, value: str, words: str) -> None:
    packages(**{name: value})
    with pytest.raises(UsageError, match=words):
        table.find(name)


def test_a_built_in_target_cannot_be_replaced(packages) -> None:
    packages(cpu=f"{__name__}:HEXAGON")
    assert table.find("cpu") is CPU


# -- OpenVINO ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.save(builders.residual_cnn(), tmp_path_factory.mktemp("ov") / "cnn.onnx")


@openvino
def test_openvino_answers_as_onnx_runtime_does(convolutions: Path) -> None:
    ours, theirs = open_session(convolutions), open_session(convolutions, provider="openvino")
    assert [(p.name, p.dtype) for p in ours.inputs] == [(p.name, p.dtype) for p in theirs.inputs]
    shape = [size if isinstance(size, int) else 3 for size in ours.inputs[0].shape]
    feed = {ours.inputs[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    expected, found = ours.run(feed), theirs.run(feed)
    assert list(expected) == list(found)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert theirs.placement().nodes_elsewhere == 0 and theirs.placement().on_provider > 0


@openvino
def test_times_are_taken_with_openvino(convolutions: Path) -> None:
    session = open_session(convolutions)
    shape = [size if isinstance(size, int) else 1 for size in session.inputs[0].shape]
    feed = {session.inputs[0].name: np.zeros(shape, np.float32)}
    found = compare(convolutions, convolutions, feed, provider="openvino", seconds=0.2)
    assert found.provider == "OpenVINO" and found.nodes_elsewhere == 0 and found.before_ms["p50"] > 0


@openvino
def test_an_operator_that_openvino_lacks_is_an_error_of_the_model(tmp_path: Path) -> None:
    node = onnx.helper.make_node("NobodyHasThis", ["x"], ["y"], domain="some.where")
    port = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", port[:1], port[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("some.where", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    with pytest.raises(ModelError, match="OpenVINO refuses the model"):
        open_session(path, provider="openvino")


@openvino
def test_int8_for_openvino_runs_as_int8_there(convolutions: Path, tmp_path: Path) -> None:
    """Judged by what OpenVINO answers; its own account counts the integer convolutions."""
    session = open_session(convolutions)
    shape = [size if isinstance(size, int) else 64 for size in session.inputs[0].shape]
    np.savez(tmp_path / "d.npz", **{session.inputs[0].name: np.random.default_rng(0).random(shape, np.float32)})
    report = onnxcomp.optimize(
        convolutions,
        data=str(tmp_path / "d.npz"),
        target="openvino",
        passes="fold-constants,cleanup,quantize-qdq{placement=table}",
        output=tmp_path / "out.onnx",
        bench=False,
    )
    assert report.fidelity is not None and report.fidelity.worst_db is not None and report.fidelity.worst_db > 25
    written = [layer.node for layer in report.layers if layer.precision[1] == "int8"]
    verdict = compilers.ask(table.find("openvino"), tmp_path / "out.onnx")
    assert verdict is not None and verdict.accepted
    opened = open_session(tmp_path / "out.onnx", provider="openvino")
    assert isinstance(opened, OpenVINOSession)
    integers = sum(n for (kind, precision), n in kernels(opened.compiled).items() if precision in ("u8", "i8"))
    assert written and integers >= len(written)
    assert any("OpenVINO" in note and "int8" in note for note in report.notes)


def resizing(folder: Path, **attributes: object) -> Path:
    """A layer behind a Resize to half the size, with data beside it."""
    generator = builders.rng()
    nodes = [
        onnx.helper.make_node("Resize", ["x", "", "half"], ["small"], mode="linear", **attributes),
        onnx.helper.make_node("Conv", ["small", "w"], ["y"]),
    ]
    ports = [
        builders.value(name, onnx.TensorProto.FLOAT, ["N", *shape])
        for name, shape in (("x", (1, 8, 8)), ("y", (64, 2, 2)))
    ]
    weights = {"half": np.array([1, 1, 0.5, 0.5], np.float32), "w": builders.normal(generator, 64, 1, 3, 3)}
    np.savez(folder / "d.npz", x=builders.normal(generator, 64, 1, 8, 8))
    return builders.save(builders.model(nodes, ports[:1], ports[1:], weights, opset=18), folder / "m.onnx")


@openvino
@pytest.mark.parametrize(("attributes", "told"), [({"antialias": 1}, True), ({}, False)])
def test_a_runtime_that_computes_another_function_is_named_first(
    attributes: dict[str, object], told: bool, tmp_path: Path
) -> None:
    """OpenVINO passes over antialias; both models go wrong alike there, and nothing between them shows it."""
    path = resizing(tmp_path, **attributes)
    report = onnxcomp.optimize(
        path,
        data=str(tmp_path / "d.npz"),
        target="openvino",
        passes="cleanup,quantize-weights",
        output=tmp_path / "out.onnx",
        bench=False,
    )
    pair = onnxcomp.verify(path, tmp_path / "out.onnx", data=str(tmp_path / "d.npz"), provider="openvino")
    for doubts in (report.doubts, pair.doubts):
        assert any("computes another function than ONNX Runtime" in doubt for doubt in doubts) == told
