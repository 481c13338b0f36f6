"""Is the default chosen by what the model is, and not by how its exporter spells it?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxcomp
from onnxcomp import config, driver, recipes
from onnxcomp.build.first import save_result
from onnxcomp.graph.codec import decode
from onnxcomp.graph.cost import integer_share, layers, parameters
from onnxcomp.graph.io import load
from onnxcomp.job import Job
from onnxcomp.ops.facts import load_operators
from onnxcomp.verify.budget import Budget, Size


def spelled_with_constants(proto: ModelProto) -> ModelProto:
    """The same model with every initializer as a Constant node, as several exporters write it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in copy.graph.initializer]
    nodes = [*made, *copy.graph.node]
    del copy.graph.initializer[:], copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def test_attention_is_seen_and_weights_in_constant_nodes_are_not_taken_for_it(tmp_path: Path) -> None:
    dense = builders.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [builders.value("x", 1, ["n", 4])],
        [builders.value("y", 1, ["n", 3])],
        {"w": np.ones((4, 3), np.float32)},
    )
    found = {}
    for name, proto in {"dense": dense, "transformer": builders.transformer()}.items():
        for spelling, spelled in {"initializers": proto, "constants": spelled_with_constants(proto)}.items():
            graph = load(builders.save(spelled, tmp_path / f"{name}-{spelling}.onnx"))
            found[name, spelling] = recipes.multiplies_activations(graph, load_operators())
    assert found == {(name, s): name == "transformer" for name, s in found}
    fused = [helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=2)]
    ends = [builders.value("x", 1, ["n", 3, 4])], [builders.value("y", 1, ["n", 3, 4])]
    proto = builders.model(fused, *ends, check=False, domains={"com.microsoft": 1})
    assert recipes.multiplies_activations(decode(proto), load_operators())


def test_a_recipe_whose_passes_change_nothing_is_left_with_their_reason(tmp_path: Path) -> None:
    model = builders.save(builders.residual_cnn(channels=16), tmp_path / "m.onnx")
    data = np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)
    feeds = onnx.load(model).graph.input[0]
    np.savez(tmp_path / "d.npz", **{feeds.name: data[:, : feeds.type.tensor_type.shape.dim[1].dim_value]})
    report = onnxcomp.optimize(
        model, data=tmp_path / "d.npz", output=tmp_path / "o.onnx", bench=False, objective="size", report=tmp_path / "r"
    )
    told = "recipe dynamic not used: quantize-dynamic left all as it was: few convolutions are faster with activations"
    assert any(note.startswith(told) for note in report.notes)


def test_the_share_of_integer_work_counts_macs_not_layers(tmp_path: Path) -> None:
    weights = {
        "wide": np.zeros((10, 90), np.int8),
        "scale": np.array(0.1, np.float32),
        "narrow": np.ones((90, 1), np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["wide", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "narrow"], ["y"]),
    ]
    proto = builders.model(nodes, [builders.value("x", 1, [1, 10])], [builders.value("y", 1, [1, 1])], weights)
    graph = load(builders.save(proto, tmp_path / "m.onnx"))
    assert integer_share(graph, load_operators()) == 900 / 990
    assert numpy_helper.to_array(proto.graph.initializer[0]).size == 900


def test_weights_in_constant_nodes_are_parameters_too(tmp_path: Path) -> None:
    proto = builders.residual_cnn()
    plain = load(builders.save(proto, tmp_path / "plain.onnx"))
    spelled = load(builders.save(spelled_with_constants(proto), tmp_path / "spelled.onnx"))
    operators = load_operators()
    assert parameters(spelled, operators) == parameters(plain, operators)
    ours, theirs = ([(c.node, c.parameters, c.bytes) for c in layers(g, operators)] for g in (spelled, plain))
    assert ours == theirs


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_no_target_but_the_cpu_gets_weights_that_are_decoded_at_load(name: str) -> None:
    for target in ("cuda", "tensorrt"):
        passes = recipes.find(name, target).spec
        assert "store-weights" not in passes
        assert "unpack" not in passes
    assert name in ("half", "clean", "mixed") or "store-weights" in recipes.find(name).spec


def test_a_budget_that_one_form_misses_is_kept_by_a_form_for_each_layer(tmp_path: Path) -> None:
    """All layers on 8 bits keep about 46 dB: more than that takes half precision where it is needed."""
    model = builders.save(builders.residual_cnn(channels=32), tmp_path / "m.onnx")
    name = onnx.load(model).graph.input[0].name
    data = np.random.default_rng(0).standard_normal((96, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "d.npz", **{name: data})
    report = onnxcomp.optimize(
        model, data=tmp_path / "d.npz", output=tmp_path / "o.onnx", bench=False, min_sqnr=50.0, objective="size"
    )
    assert report.verdict == "accepted"
    assert any(record.name == "mixed-precision" and record.changes for record in report.passes)
    assert (tmp_path / "o.plan.toml").exists()


def test_the_budget_becomes_options_of_the_pass_that_keeps_it() -> None:
    budget = Budget(min_sqnr=30.0, max_size=Size(share=0.5), min_speedup=1.25)
    spec = recipes.find("mixed").within(budget, "size").spec
    assert spec.endswith("mixed-precision{objective=size,min_sqnr=30.0,max_size=0.5,min_speedup=1.25}")
    assert str(recipes.find("mixed").within(Budget(max_size=Size(bytes=50)), "latency", 100).pipeline).endswith(
        "mixed-precision{max_size=0.5}"
    )
    assert recipes.find("int8").within(budget, "size") == recipes.find("int8")
    decided = recipes.find("int8").within(Budget(min_agreement=0.97), "latency").spec
    assert "quantize-qdq{agreement=0.97}" in decided


def test_the_configuration_of_what_a_recipe_chose_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(__file__).resolve().parent.parent / "models" / "digits-cnn.onnx"
    with np.load(model.with_name("digits-train.npz")) as arrays:
        np.savez(tmp_path / "few.npz", **{name: arrays[name][:160] for name in arrays.files})
    asked = Job(model, data=str(tmp_path / "few.npz"), bench=False, recipe="weights8", output=tmp_path / "a.onnx")
    report = driver.run(asked)
    written = save_result(asked, ",".join(record.spec for record in report.passes))
    first = asked.out.read_bytes()
    asked.out.unlink()
    entry = config.load(written).models[0]
    assert entry.job.recipe is None
    monkeypatch.chdir(written.parent)
    driver.run(replace(entry.job, output=asked.out))
    assert asked.out.read_bytes() == first
