"""Is precision decided layer by layer so that the budget holds on samples that nobody showed it?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from feeds import Feeds, RuledCosts, on_integers
from onnx import ModelProto, helper

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.manager.plan import Plan
from onnxcomp.results import PassRecord

SLOW = {"QuantizeLinear": 1.0, "DequantizeLinear": 1.0}


def mixed(
    proto: ModelProto, options: str = "", *, samples: int = 40, seed: int = 0, costs: RuledCosts | None = None
) -> tuple[ModelProto, PassRecord]:
    """The model after the pass, and the pass's record."""
    context = PassContext(calibration=Feeds(builders.feeds_of(proto, batch=samples, seed=seed)), costs=costs)
    spec = f"fuse-batchnorm,mixed-precision{{{options}}}" if options else "fuse-batchnorm,mixed-precision"
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), context)
    after = encode(result.graph)
    onnx.checker.check_model(after, full_check=True)
    return after, result.records[-1]


def unseen_db(before: ModelProto, after: ModelProto, seed: int = 99) -> float:
    feeds = builders.feeds_of(before, batch=48, seed=seed)
    pairs = zip(builders.run(before, feeds), builders.run(after, feeds), strict=True)
    return min(builders.sqnr_db(a, b) for a, b in pairs)


def forms_of(record: PassRecord) -> dict[str, str]:
    return {layer["node"]: layer["form"] for layer in record.documents["plan"]["layers"]}


def fast_integers(node: Any) -> float:
    """Integers take a third of float's time, conversions a little."""
    if node.op in SLOW:
        return SLOW[node.op]
    if node.op not in ("Conv", "Gemm", "MatMul", "MatMulNBits"):
        return 2.0
    return 30.0 if on_integers(node) else 90.0


@pytest.mark.parametrize("least", [20.0, 34.0, 44.0])
def test_a_budget_holds_on_samples_that_the_pass_never_saw(least: float) -> None:
    proto = builders.residual_cnn(channels=32)
    for seed in range(2):
        after, record = mixed(proto, f"min_sqnr={least}", seed=seed, costs=RuledCosts(fast_integers))
        assert record.changes
        assert unseen_db(proto, after) >= least


def test_a_stricter_budget_leaves_more_in_float_and_never_costs_less() -> None:
    proto = builders.residual_cnn(channels=32)
    found = [mixed(proto, f"min_sqnr={db}", costs=RuledCosts(fast_integers))[1] for db in (25, 50)]
    times = [record.documents["plan"]["figures"]["predicted_time_us"] for record in found]
    integers = [list(forms_of(record).values()).count("int8") for record in found]
    assert times[0] < times[1]
    assert integers[0] > integers[1]


def test_what_stays_float_says_what_another_form_would_save_and_take_of_the_budget() -> None:
    proto = builders.residual_cnn(channels=32)
    _, record = mixed(proto, "min_sqnr=44,forms=int8", costs=RuledCosts(fast_integers))
    layers = {layer["node"]: layer for layer in record.documents["plan"]["layers"]}
    told = {skip.node: skip.why for skip in record.skips if skip.why.startswith("kept float")}
    assert told and all(layers[node]["form"] == "float" for node in told)
    for node, why in told.items():
        spent = r"([\d.]+)(%| times)(?: of)? the error that 44 dB allow"
        found = re.fullmatch(rf"kept float: (\w+) would save (.*?)( before .*)?, for {spent}", why)
        assert found is not None, why
        form = next(other for other in layers[node]["others"] if other["form"] == found[1])
        saved = (layers[node]["bytes"] - form["bytes"]) / 1000
        assert f"{saved:.1f} kB" in found[2]
        unit = 0.01 if found[5] == "%" else 1.0
        assert unit * float(found[4]) == pytest.approx(10 ** ((44 - form["sqnr_db"]) / 10), rel=0.05)
    assert " of the time of the float model it was given, " in record.summary


class Layouts(RuledCosts):
    """Every QuantizeLinear takes longer than its kernel says: layouts change where it stands."""

    def latency_ms(self, graph: Graph) -> float:
        return super().latency_ms(graph) + sum(0.1 for node in graph.nodes if node.op == "QuantizeLinear")


def apart() -> ModelProto:
    """Three convolutions with a function behind each that has no integer kernel."""
    weights = {f"w{i}": builders.normal(builders.rng(i), 32, 32, 3, 3) for i in range(3)}
    nodes = []
    for i in range(3):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Erf", [f"c{i}"], [f"x{i + 1}"], f"erf{i}"))
    ends = [builders.value(name, onnx.TensorProto.FLOAT, ["N", 32, 8, 8]) for name in ("x0", "x3")]
    return builders.model(nodes, ends[:1], ends[1:], weights)


def test_what_conversions_cost_is_learned_from_the_time_of_the_whole() -> None:
    """Integers save 60 us a layer, which pays for the kernels of conversions and not for what comes with them."""

    def times(node: Any) -> float:
        return 15.0 if node.op == "QuantizeLinear" else fast_integers(node)

    told = [mixed(apart(), "min_sqnr=10,front=8", costs=kind(times))[1] for kind in (RuledCosts, Layouts)]
    assert ["int8" in forms_of(record).values() for record in told] == [True, False]
    fastest = [record.documents["front"][0]["predicted_time"] for record in told]
    assert fastest[0] < 0.9 < fastest[1]


def test_size_is_kept_with_the_error_as_small_as_it_can_be() -> None:
    proto = builders.residual_cnn(channels=32)
    after, record = mixed(proto, "objective=accuracy,max_size=0.6,min_sqnr=0")
    assert after.ByteSize() <= 0.6 * proto.ByteSize()
    assert set(forms_of(record).values()) <= {"half", "float", "stored8"}
    assert unseen_db(proto, after) > 60


def test_a_budget_that_nothing_keeps_changes_nothing_and_says_what_was_closest() -> None:
    proto = builders.residual_cnn()
    after, record = mixed(proto, "objective=size,max_size=0.01,min_sqnr=60")
    assert not record.changes
    assert "no assignment keeps the budget" in record.missed
    assert "DequantizeLinear" not in builders.ops(after) and "Cast" not in builders.ops(after)


def test_the_same_run_gives_the_same_bytes() -> None:
    proto = builders.residual_cnn(channels=32)
    first, second = (mixed(proto, "min_sqnr=30")[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_layers_left_out_stay_float_and_say_so() -> None:
    proto = builders.residual_cnn(channels=32)
    _, record = mixed(proto, 'min_sqnr=20,exclude=["stem"]')
    assert "stem" not in forms_of(record)
    assert {skip.node: skip.why for skip in record.skips}["stem"] == "not selected by include and exclude"


def test_a_front_has_points_from_fast_to_true() -> None:
    proto = builders.residual_cnn(channels=32)
    _, record = mixed(proto, "front=6", costs=RuledCosts(fast_integers))
    front = record.documents["front"]
    assert len(front) >= 4
    times = [point["predicted_time"] for point in front]
    assert times == sorted(times) and times[0] < 1
    assert front[-1]["predicted_sqnr_db"] is None or front[-1]["predicted_sqnr_db"] > front[0]["predicted_sqnr_db"]


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_plan_followed_gives_the_forms_it_names(tmp_path: Path, suffix: str) -> None:
    proto = builders.residual_cnn(channels=32)
    first, record = mixed(proto, "min_sqnr=30", costs=RuledCosts(fast_integers))
    plan = Plan.of(record.documents["plan"])
    path = tmp_path / f"plan{suffix}"
    import json

    path.write_text(str(plan) if suffix == ".toml" else json.dumps(plan.data()))
    again, followed = mixed(proto, f'plan="{path}"')
    assert Plan.read(path).data() == plan.data()
    assert forms_of(followed) == forms_of(record)
    assert abs(unseen_db(proto, again) - unseen_db(proto, first)) < 3


def test_an_edited_line_is_what_happens(tmp_path: Path) -> None:
    proto = builders.residual_cnn(channels=32)
    path = tmp_path / "plan.toml"
    path.write_text(
        'schema = 1\ndefault = "half"\n[[layers]]\nnode = "block.*"\nform = "int8"\n'
        '[[layers]]\nnode = "block.conv1"\nform = "float"\n'
    )
    after, record = mixed(proto, f'plan="{path}"')
    told = {change.node: change.what for change in record.details}
    assert "block.conv1" not in told and "8-bit" in told["block.conv2"] and "half" in told["stem"]
    types = {t.name: t.data_type for t in after.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types.values() and onnx.TensorProto.INT8 in types.values()


def test_a_plan_needs_no_times_for_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who made it knew that a convolution is faster on windows; who follows it need not measure that again."""
    monkeypatch.setattr("onnxcomp.passes.weights.windows.LEAST_WORK", 1)
    path = tmp_path / "plan.toml"
    path.write_text('schema = 1\n[[layers]]\nnode = "block.conv1"\nform = "dynamic"\n')
    after, followed = mixed(builders.residual_cnn(channels=64), f'plan="{path}"')
    assert [change.node for change in followed.details] == ["block.conv1"]
    assert builders.ops(after)["MatMulInteger"] == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no plan of schema"),
        ("schema = 2", "no plan of schema"),
        ("schema = true", "no plan of schema"),
        ("schema = 1\nfigures = { bytes = true }", "bytes has to be a number"),
        ("schema = [", "malformed"),
        ("schema = 1\nlayers = 3", "layers has to be a list of tables"),
        ("schema = 1\nsurprise = 3", "unknown key 'surprise'"),
        ('schema = 1\n[[layers]]\nnode = "stem"', "it needs form, text"),
        ('schema = 1\n[[layers]]\nnode = 7\nform = "half"', "node has to be text"),
        ('schema = 1\n[[layers]]\nnode = "stem"\nform = "half"\nbytes = false', "bytes has to be a whole number"),
        ('schema = 1\n[[layers]]\nnode = "stem"\nform = "half"\nothers = [{ bytes = 3 }]', "it needs form, text"),
        ('schema = 1\n[[layers]]\nnode = "stem"\nform = "half"\ntypo = 1', "unknown key 'typo'"),
        ('schema = 1\n[[layers]]\nnode = "stm"\nform = "half"', "no node of the model is called 'stm'"),
        ('schema = 1\n[[layers]]\nnode = "head.*"\nform = "half"', "no node of the model is called"),
        ('schema = 1\n[[layers]]\nnode = "stem"\nform = "in8"', "no form 'in8'"),
        ('schema = 1\ndefault = "tiny"', "no form 'tiny'"),
        ('schema = 1\n[[layers]]\nnode = "stem"\nform = "dynamic"', "stem cannot take the form dynamic"),
        ('schema = 1\n[[layers]]\nnode = "stem\x1b"\nform = "half"', "malformed"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_an_error_in_three_lines(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=what) as error:
        mixed(builders.residual_cnn(), f'plan="{path}"')
    assert error.value.exit_code == 2
    assert error.value.where and error.value.do and len(str(error.value).splitlines()) == 3


def test_a_plan_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        mixed(builders.residual_cnn(), f'plan="{tmp_path / "none.toml"}"')
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="cannot be read"):
        mixed(builders.residual_cnn(), f'plan="{tmp_path / "binary.toml"}"')


@pytest.mark.parametrize("name", ['a "quoted" name', "päth/Ünit:0", "back\\slash", "tab\there", "del\x7f"])
def test_any_name_of_a_node_survives_the_file(tmp_path: Path, name: str) -> None:
    from onnxcomp.manager.plan import Entry

    plan = Plan((Entry(name, "half", {"bytes": 3, "others": [{"form": "float", "time_us": 0.5}]}),))
    (tmp_path / "plan.toml").write_text(str(plan), encoding="utf-8")
    assert Plan.read(tmp_path / "plan.toml").data() == plan.data()


def test_options_that_make_no_sense_together() -> None:
    with pytest.raises(UsageError, match="leaves the model as it is"):
        Pipeline.parse("mixed-precision{objective=accuracy}")
    with pytest.raises(UsageError, match="no form 'int3'"):
        Pipeline.parse("mixed-precision{forms=[int3]}")
    with pytest.raises(DataError, match="max_drop needs labels"):
        mixed(builders.residual_cnn(), "max_drop=0.1")


def test_nodes_that_share_a_weight_take_one_form() -> None:
    generator = builders.rng()
    weight = builders.normal(generator, 48, 48)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "second"),
    ]
    ends = [builders.value(name, onnx.TensorProto.FLOAT, ["N", 48]) for name in "xy"]
    proto = builders.model(nodes, ends[:1], ends[1:], {"w": weight})
    after, record = mixed(proto, "objective=size,min_sqnr=20")
    assert list(forms_of(record)) == ["first"] and record.changes == 1
    assert after.ByteSize() < 0.5 * proto.ByteSize()
    assert unseen_db(proto, after) > 20


def test_products_of_a_transformer_take_forms_too() -> None:
    proto = builders.transformer()
    feeds = builders.transformer_feed(batch=40)
    context = PassContext(calibration=Feeds(feeds))
    result = PassManager(Pipeline.parse("fold-constants,mixed-precision{min_sqnr=18}")).run(decode(proto), context)
    assert result.records[-1].changes
    other = builders.transformer_feed(batch=24, seed=5)
    pairs = zip(builders.run(proto, other), builders.run(encode(result.graph), other), strict=True)
    assert min(builders.sqnr_db(np.asarray(a), np.asarray(b)) for a, b in pairs) > 18
