"""Are as many layers left in float as the decisions ask for, and no more?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from feeds import Feeds, RuledCosts
from onnx import helper
from test_qdq_placement import ruled

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph, Node
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.passes.qdq import choice, placement, proof, refine, sensitivity, weights
from onnxcomp.passes.qdq.learned import Learned
from onnxcomp.passes.qdq.protect import Protector
from onnxcomp.passes.qdq.quantizer import TRIED, Quantizer
from onnxcomp.passes.qdq.ranges import Rule
from onnxcomp.passes.quantize_qdq import QuantizeQdq
from onnxcomp.runtime.reference import Reference
from onnxcomp.targets.table import find

SPEC = "quantize-qdq{agreement=0.99,min_sqnr=5.0}"


def chain() -> onnx.ModelProto:
    """Four convolutions; one has a weight in each row beside which the others are small, so that 8 bits lose them."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(0, 0.1, (48, 48, 3, 3)).astype(np.float32) for i in range(4)}
    weights["w2"][:, 0, 0, 0] = 10.0
    nodes = []
    for i in range(4):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"], f"relu{i}"))
    shape = [None, 48, 12, 12]
    return builders.model(nodes, [builders.value("x0", 1, shape)], [builders.value("x4", 1, shape)], weights)


PROTO = chain()


def integer_layers(graph: Graph) -> int:
    """Convolutions that read integers."""
    read = [node.inputs[1].producer for node in graph.nodes if node.op == "Conv"]
    return sum(maker is not None and maker.op == "DequantizeLinear" for maker in read)


def quantized(
    share: Callable[[Graph], float | None] | None, spec: str = SPEC, costs: RuledCosts | None = None
) -> RunResult:
    context = PassContext(calibration=Feeds(builders.feeds_of(PROTO, batch=16)), agreement=share, costs=costs)
    return PassManager(Pipeline.parse(spec)).run(decode(PROTO), context)


WHOLE = integer_layers(quantized(None).graph)


def test_layers_stay_float_until_the_decisions_hold() -> None:
    asked: list[int] = []

    def share(graph: Graph) -> float:
        asked.append(integer_layers(graph))
        return 1.0 if asked[-1] < WHOLE else 0.9

    result = quantized(share)
    kept = integer_layers(result.graph)
    assert 0 < kept < WHOLE and asked[-1] == kept and asked[0] == WHOLE
    assert result.changes == kept
    assert any("100.0% of the decisions are the original's now, 90.0% were" in note for note in result.records[0].notes)
    assert "conv2" not in {change.node for change in result.records[0].details}


@pytest.mark.parametrize(
    ("least", "asked", "taken"),
    [
        (10.0, [8, 14, 11], 11),  # the middle of the step holds, too: fewer layers stay float
        (12.0, [8, 14, 11], 14),
        (16.0, [8, 14, 20, 17], 17),
        (21.0, [8, 14, 20, 26], 26),  # no round is left
    ],
)
def test_behind_a_large_step_its_middle_is_tried(
    least: float, asked: list[int], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions hold where so many dB are asked for at least."""
    found: list[float] = []
    real = Protector._quantized

    def noted(self: Protector, graph: Graph, options: QuantizeQdq, learned: Learned) -> Any:
        del learned
        found.append(options.min_sqnr)
        return real(self, graph, replace(options, min_sqnr=20.0), Learned())

    monkeypatch.setattr(Protector, "_quantized", noted)
    result = quantized(lambda graph: 1.0 if found[-1] >= least else 0.5, "quantize-qdq{agreement=0.99,min_sqnr=8.0}")
    assert found == asked
    assert any(f"the outputs keep {taken} dB" in note for note in result.records[0].notes)


@pytest.mark.parametrize("told", [1.0, 0.99, None])
def test_nothing_more_stays_float_where_decisions_hold_or_cannot_be_told(told: float | None) -> None:
    asked: list[Graph] = []

    def share(graph: Graph) -> float | None:
        asked.append(graph)
        return told

    assert integer_layers(quantized(share).graph) == WHOLE and len(asked) == 1


def test_the_first_placement_stays_where_no_other_holds() -> None:
    result = quantized(lambda graph: 0.9)
    assert integer_layers(result.graph) == WHOLE
    assert any("90.0% of the decisions are the original's; no faster" in note for note in result.records[0].notes)
    assert integer_layers(quantized(lambda graph: 0.5, "quantize-qdq{min_sqnr=5.0}").graph) == WHOLE


def test_the_placement_that_keeps_most_is_taken_where_none_holds() -> None:
    asked: list[int] = []

    def share(graph: Graph) -> float:
        asked.append(integer_layers(graph))
        return 0.9 if asked[-1] == WHOLE else 0.97 if len(asked) == 2 else 0.96

    result = quantized(share)
    assert len(asked) > 2
    assert integer_layers(result.graph) == asked[1] < WHOLE
    assert result.changes == asked[1]
    assert any("97.0% of the decisions are the original's; no faster" in note for note in result.records[0].notes)


def test_a_float_layer_between_integers_is_judged_as_it_will_run() -> None:
    """ONNX Runtime puts a Conv between Q and DQ on integers unasked, at one scale: 17 dB where 31 are meant."""
    result = quantized(None, "quantize-qdq{min_sqnr=27}")
    assert [change.node for change in result.records[0].details] == ["conv0", "conv1", "conv3"]


def test_the_layers_of_a_large_model_are_looked_at_on_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = sensitivity.noises

    def noted(*given: Any, **more: Any) -> Any:
        seen.append(len(given[5]))
        return real(*given, **more)

    monkeypatch.setattr(sensitivity, "noises", noted)
    for most in (choice.MOST_WORK, 1.0):
        monkeypatch.setattr(choice, "MOST_WORK", most)
        assert quantized(None, "quantize-qdq{min_sqnr=27}").changes == WHOLE - 1
    assert seen == [2, 1]  # of the two that there are


def test_what_a_layer_was_refined_to_holds_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding layers takes most of a round; what rounds differ by is which of them stay float."""
    refined: list[str] = []
    real = refine.refine

    def noted(graph: Graph, exact: Graph, wanted: Any, layers: dict[Node, Any], *others: Any, **more: Any) -> None:
        refined.extend(node.name for node in layers)
        real(graph, exact, wanted, layers, *others, **more)

    monkeypatch.setattr(refine, "refine", noted)
    first: list[dict[str, np.ndarray]] = []

    def share(graph: Graph) -> float:
        weights = {node.name: node.inputs[1].producer for node in graph.nodes if node.op == "Conv"}
        read = {name: maker.inputs[0].values for name, maker in weights.items() if maker is not None}
        first.append(read)
        return 1.0 if len(read) < WHOLE else 0.9

    quantized(share)
    assert len(first) > 1 and sorted(refined) == [f"conv{i}" for i in range(4)]
    for name, values in first[-1].items():
        np.testing.assert_array_equal(values, first[0][name])


def test_rounds_prove_and_measure_each_placement_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds ask more of the outputs; what a placement gives, and whether it runs as it says, stays as it is."""
    proven: list[str] = []
    measured: list[str] = []
    prove, measure = proof.faults, Reference.sqnr_db

    def proving(graph: Graph, *others: Any, **more: Any) -> proof.Faults:
        proven.append(sha256(encode(graph).SerializeToString()).hexdigest())
        return prove(graph, *others, **more)

    def measuring(self: Reference, graph: Graph) -> float:
        measured.append(sha256(encode(graph).SerializeToString()).hexdigest())
        return measure(self, graph)

    monkeypatch.setattr(proof, "faults", proving)
    monkeypatch.setattr(Reference, "sqnr_db", measuring)
    rounds: list[int] = []

    def share(graph: Graph) -> float:
        rounds.append(integer_layers(graph))
        return 0.9

    quantized(share)
    assert len(rounds) > 2
    assert len(set(proven)) == len(proven) and len(set(measured)) == len(measured)
    assert len(measured) > 1


def test_each_round_has_the_answers_of_the_float_model_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Graph] = []
    answers = Reference.answers

    def answering(self: Reference, graph: Graph) -> Any:
        if not any(node.op == "QuantizeLinear" for node in graph.nodes):
            asked.append(graph)
        return answers(self, graph)

    monkeypatch.setattr(Reference, "answers", answering)
    quantized(lambda graph: 0.9)
    assert len(asked) == 1


def test_ranges_are_chosen_and_weights_rounded_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[str] = []
    chosen: list[int] = []
    rounding, choosing = weights.quantized, Rule.choose

    def noted(node: Node, *others: Any, **more: Any) -> weights.Integers:
        rounded.append(node.name)
        return rounding(node, *others, **more)

    def choose(self: Rule, seen: Any, curve: Any = None) -> Any:
        chosen.append(1)
        return choosing(self, seen, curve)

    monkeypatch.setattr(weights, "quantized", noted)
    monkeypatch.setattr(Rule, "choose", choose)
    rounds: list[int] = []

    def share(graph: Graph) -> float:
        rounds.append(len(chosen))
        return 0.9

    quantized(share)
    assert len(rounds) > 2 and rounds[0] == rounds[-1] > 0
    assert sorted(rounded) == sorted([f"conv{i}" for i in range(4)] * len(TRIED))  # bias scales follow the ranges


def test_rounds_look_only_at_starts_that_were_not_clearly_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all starts come to one placement, so that one of them is enough from then on."""
    asked: list[tuple[int, float]] = []
    real = placement.chosen
    rounds: list[int] = []

    def noted(*args: Any, toll: float = 1.0, **more: Any) -> set[Node]:
        asked.append((len(rounds), toll))
        return real(*args, toll=toll, **more)

    monkeypatch.setattr(placement, "chosen", noted)

    def share(graph: Graph) -> float:
        rounds.append(1)
        return 0.9

    quantized(share, costs=ruled(lambda node: 3.0))
    assert len(rounds) > 2
    assert {toll for at, toll in asked if at == 0} == {1.0, 2.0}
    assert {toll for at, toll in asked if at > 0} == {1.0}


def test_a_round_begins_with_the_noise_that_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    real = placement.chosen

    def noted(*args: Any, most: float = np.inf, **more: Any) -> set[Node]:
        asked.append(most)
        return real(*args, most=most, **more)

    monkeypatch.setattr(placement, "chosen", noted)
    context, graph = PassContext(calibration=Feeds(builders.feeds_of(PROTO, batch=16))), decode(PROTO)
    assert context.calibration is not None
    learned = Learned(held={1.0: 0.25})
    Quantizer(QuantizeQdq(min_sqnr=27.0), graph, context, context.calibration, find("cpu"), learned).run()
    limited = [most for most in asked if most < np.inf]
    assert limited[0] == pytest.approx(0.25 * 10**-2.7)
    assert learned.held[1.0] <= 0.25
