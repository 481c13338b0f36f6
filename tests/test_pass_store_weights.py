"""Do weights that stay float take a quarter or half of their bytes, with the outputs kept and no kernel changed?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import builders
import numpy as np
import pytest
from feeds import Feeds
from nets import Net
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Constant, Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.weights.trials import Trials
from onnxcomp.runtime.profile import kernels
from onnxcomp.testing import check_pass


def stored(proto: ModelProto, feeds: dict[str, np.ndarray] | None = None, spec: str = "store-weights"):
    context = PassContext(probes=None if feeds is None else Feeds(feeds))
    result = PassManager(Pipeline.parse(spec)).run(decode(proto, keep_initializer_inputs=True), context)
    return encode(result.graph), result.records[-1]


def samples(proto: ModelProto, count: int = 4) -> dict[str, np.ndarray]:
    return builders.feeds_of(proto, batch=count)


def cnn() -> ModelProto:
    net = Net()
    x = net.input("N", 8, 16, 16)
    for fan_in, fan_out in ((8, 32), (32, 32), (32, 16)):
        x = net.op("Relu", net.conv(x, fan_in, fan_out))
    return net.model(x)


def test_a_float_model_is_a_quarter_and_runs_the_same_kernels(tmp_path: Path) -> None:
    proto = cnn()
    after, record = stored(proto, samples(proto))
    assert record.changes == 3
    assert after.ByteSize() < 0.32 * proto.ByteSize()
    before, now = (kernels(builders.save(m, tmp_path / f"{i}.onnx")) for i, m in enumerate((proto, after)))
    assert now == before, "decoded at load: what runs is what ran"
    feeds = samples(proto)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


def einsum(net: Net) -> str:
    return str(net.op("Einsum", net.input("N", 6, 32), net.weight(4, 32, 16), equation="nsd,hdk->nhsk"))


def tied(net: Net) -> str:
    table = net.weight(80, 32)
    row = net.op("Gather", table, net.input("N", 5, dtype=TensorProto.INT64))
    return str(net.op("MatMul", row, net.op("Transpose", table, perm=[1, 0])))


def half(net: Net) -> str:
    x = net.input("N", 64)
    net.weights["h"] = net.generator.standard_normal((64, 96)).astype(np.float16)
    return str(net.op("MatMul", x, net.op("Cast", "h", to=builders.FLOAT)))


def attention(net: Net) -> str:
    x = net.input("N", 6, 32)
    args = x, net.weight(32, 96), net.weight(96)
    return str(net.op("Attention", *args, domain="com.microsoft", num_heads=4))


def position(net: Net) -> str:
    at = net.op("Slice", net.weight(1, 64, 32), net.const([0]), net.const([6]), net.const([1]))
    return str(net.op("Add", net.input("N", 6, 32), at))


@pytest.mark.parametrize("part", [einsum, tied, half, attention, position])
def test_weights_are_stored_whoever_reads_them(part) -> None:
    net = Net()
    proto = net.model(part(net), domains={"com.microsoft": 1} if part is attention else {})
    feeds = samples(proto)
    after, record = stored(proto, feeds, "store-weights")
    assert record.changes == 1
    before = sum(w.nbytes for w in net.weights.values() if w.size > 100)
    now = sum(numpy_helper.to_array(t).nbytes for t in after.graph.initializer)
    assert now < (0.6 if part is half else 0.35) * before + 600
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


def sensitive() -> ModelProto:
    """Three products; what the first brings into the last is a small difference of large numbers."""
    net = Net()
    x = net.input("N", 32)
    net.weights["fine"] = net.generator.standard_normal((32, 64)).astype(np.float32)
    net.weights["twin"] = net.weights["fine"] + np.float32(0.03) * net.generator.standard_normal((32, 64), np.float32)
    small = net.op("Sub", net.op("MatMul", x, "fine"), net.op("MatMul", x, "twin"))
    h = net.op("Relu", net.op("MatMul", small, net.weight(64, 128)))
    return net.model(net.op("MatMul", h, net.weight(128, 64)))


def test_weights_that_cost_the_outputs_too_much_take_half_precision() -> None:
    proto = sensitive()
    feeds = samples(proto)
    after, record = stored(proto, feeds)
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    assert kinds["fine_half"] == kinds["twin_half"] == TensorProto.FLOAT16
    assert sum(kind == TensorProto.INT8 for kind in kinds.values()) >= 1
    assert "half precision" in " ".join(change.what for change in record.details)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30
    everywhere, _ = stored(proto, feeds, "store-weights{least_sqnr=0}")
    assert all(t.data_type != TensorProto.FLOAT16 for t in everywhere.graph.initializer)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(everywhere, feeds)[0]) < 20


@pytest.mark.parametrize(("there", "finer"), [(1.0, True), (0.9, False)])
def test_half_precision_is_taken_until_the_decisions_hold(there: float, finer: bool) -> None:
    proto = cnn()
    exact = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    asked: list[float] = []

    def share(graph: Graph) -> float:
        """Of equal decisions, as it would be if every weight had to be as exact as half precision is."""
        error = max(np.abs(c.values - exact[c.name]).max() for c in graph.constants() if c.name in exact)
        asked.append(there if error < 1e-3 else 0.9)
        return asked[-1]

    context = PassContext(probes=Feeds(samples(proto)), agreement=share)
    for spec in ("store-weights", "store-weights{agreement=0.89}", "store-weights{agreement=0.99}"):
        record = PassManager(Pipeline.parse(spec)).run(decode(proto), context).records[-1]
        last = spec.endswith("0.99}")
        assert any("half precision" in change.what for change in record.details) == (finer and last), spec
        assert any("of the decisions are the original's now" in note for note in record.notes) == last
    assert asked.count(1.0) == (2 if finer else 0)  # of what came in, and of what is handed on


def test_what_computes_as_the_original_is_not_asked_whether_it_decides_as_it() -> None:
    proto = cnn()
    exact = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    asked: list[bool] = []

    def share(graph: Graph) -> float:
        asked.append(all(np.array_equal(c.values, exact[c.name]) for c in graph.constants() if c.name in exact))
        return 0.9

    for original in (decode(proto), None):
        context = PassContext(probes=Feeds(samples(proto)), agreement=share, original=original)
        PassManager(Pipeline.parse("store-weights{agreement=0.99}")).run(decode(proto), context)
        assert asked.count(True) == (0 if original is not None else 1) and len(asked) > 2


def test_what_weights_do_to_the_outputs_is_run_once_however_much_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[frozenset[str], int]] = []
    real = Trials.noise

    def noted(self: Trials, changed: Mapping[Constant, np.ndarray], samples: int) -> float:
        asked.append((frozenset(constant.name for constant in changed), samples))
        return real(self, changed, samples)

    monkeypatch.setattr(Trials, "noise", noted)
    rounds: list[float] = []

    def share(graph: Graph) -> float:
        """What came in, asked for second, decides as it should; 8 bits never do."""
        rounds.append(1.0 if len(rounds) == 1 else 0.9)
        return rounds[-1]

    proto = sensitive()
    context = PassContext(probes=Feeds(samples(proto)), agreement=share)
    PassManager(Pipeline.parse("store-weights{agreement=0.99}")).run(decode(proto), context)
    assert len(rounds) > 4
    assert len(set(asked)) == len(asked) > 1


def test_without_samples_that_is_said() -> None:
    _, record = stored(cnn())
    assert "not measured: no samples" in record.notes[0]


def test_scales_of_integers_are_not_weights() -> None:
    proto = builders.transformer()
    spec = "quantize-dynamic{least=1},store-weights"
    after, record = stored(proto, builders.transformer_feed(4), spec)
    names = " ".join(change.what for change in record.details)
    assert "scale" not in names
    assert "_q8" not in names
    feeds = builders.transformer_feed()
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 20


def test_weights_in_a_body_are_stored_outside_of_it() -> None:
    weight = builders.normal(builders.rng(), 64, 64)

    def branch(name: str) -> TensorProto:
        nodes = [helper.make_node("MatMul", ["x", "w"], [name], f"{name}_mm")]
        held = numpy_helper.from_array(weight * (1 if name == "t" else 2), "w")
        return helper.make_graph(nodes, name, [], [builders.value(name, builders.FLOAT, None)], [held])

    node = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("t"), else_branch=branch("e"))
    inputs = [builders.value("flag", TensorProto.BOOL, []), builders.value("x", builders.FLOAT, ["N", 64])]
    proto = builders.model([node], inputs, [builders.value("y", builders.FLOAT, ["N", 64])], {}, check=False)
    x = builders.normal(builders.rng(1), 4, 64)
    for flag in (True, False):
        feeds = {"flag": np.array(flag), "x": x}
        after, record = stored(proto)
        assert record.changes == 2
        assert after.ByteSize() < 0.3 * proto.ByteSize()
        assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 35


def test_what_is_left_says_why() -> None:
    net = Net()
    x = net.input("N", 64)
    net.weights |= {name: net.generator.standard_normal((64, 64)).astype(np.float32) for name in ("nan", "fed", "out")}
    net.weights["nan"][3, 3] = np.nan
    y = net.op("Concat", *(net.op("MatMul", x, name) for name in ("nan", "fed", "out")), axis=1)
    proto = net.model(y, "out")
    proto.graph.input.append(builders.value("fed", builders.FLOAT, [64, 64]))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(1), "unused"))
    _, record = stored(proto)
    assert record.changes == 0
    whys = " ".join(skip.why for skip in record.skips)
    for reason in ("nan holds NaN", "fed is listed as an input", "out is an output of the model itself"):
        assert reason in whys


def test_the_contract_of_passes() -> None:
    check_pass(Pipeline.parse("store-weights").passes[0])
