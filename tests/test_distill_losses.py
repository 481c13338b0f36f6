"""Do the losses have the values and, at the worker, the gradients of their definitions?"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from nets import Net

from onnxcomp.distill.losses import LABELS, LOSS, Term, append_loss, fits, logits_of, softmax_of
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph

BATCH = 4


def student(*shape: int, opset: int = 17, softmax: bool = False) -> Graph:
    """A graph that gives its input, or the probabilities of its input."""
    net = Net(opset=opset)
    x = net.input(BATCH, *shape)
    y = net.op("Mul", x, net.const(1.0, np.float32))
    return decode(net.model(net.op("Softmax", y, axis=-1) if softmax else y))


def value(graph: Graph, feeds: dict[str, np.ndarray]) -> float:
    session = ort.InferenceSession(to_bytes(graph), providers=["CPUExecutionProvider"])
    (found,) = session.run([LOSS], feeds)
    assert found.shape == ()
    return float(found)


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def run(term: Term | list[Term], y: np.ndarray, t: np.ndarray | None, labels: np.ndarray | None = None, **options):
    graph = student(*y.shape[1:], **options)
    name = graph.outputs[0].name
    terms = [term] if isinstance(term, Term) else term
    terms = [Term(**{**t_.__dict__, "student": name}) for t_ in terms]
    shapes = {name: y.shape} | ({"t": t.shape} if t is not None else {})
    append_loss(graph, terms, shapes, None if labels is None else labels.shape)
    feeds = {"x0": y} | ({"t": t} if t is not None else {}) | ({LABELS: labels} if labels is not None else {})
    return value(graph, feeds)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.normal(size=(BATCH, 6)).astype(np.float32) * 2 for _ in range(2))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_divergence_times_squared_temperature(arrays, opset, temperature) -> None:
    y, t = arrays
    p, q = softmax(t / temperature), softmax(y / temperature)
    wanted = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert run(Term("kl", "", "t", temperature=temperature), y, t, opset=opset) == pytest.approx(wanted, rel=1e-4)
    assert run(Term("kl", "", "t", temperature=temperature), t, t, opset=opset) == pytest.approx(0.0, abs=1e-6)


def test_classes_may_stand_on_the_channel_axis() -> None:
    rng = np.random.default_rng(0)
    y, t = (rng.normal(size=(BATCH, 3, 5, 2)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 3, (BATCH, 5, 2))
    p, q = softmax(t, 1), softmax(y, 1)
    assert run(Term("kl", "", "t", axis=1), y, t) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    picked = np.take_along_axis(q, labels[:, None], 1)
    assert run(Term("labels", "", axis=1), y, None, labels) == pytest.approx(-np.log(picked).mean(), rel=1e-4)


def test_labels_and_weights_add_up(arrays) -> None:
    y, t = arrays
    labels = np.array([0, 5, 2, 2])
    entropy = -np.log(softmax(y)[np.arange(BATCH), labels]).mean()
    kl = (softmax(t) * np.log(softmax(t) / softmax(y))).sum(1).mean()
    found = run([Term("kl", "", "t", weight=0.7), Term("labels", "", weight=0.3)], y, t, labels)
    assert found == pytest.approx(0.7 * kl + 0.3 * entropy, rel=1e-4)


def test_squared_error_is_relative_to_the_energy(arrays) -> None:
    y, t = arrays
    energy = float((t**2).mean())
    assert run(Term("mse", "", "t", energy=energy), y, t) == pytest.approx(((y - t) ** 2).mean() / energy, rel=1e-5)
    small = run(Term("mse", "", "t", energy=energy * 1e-6), y * 1e-3, t * 1e-3)
    assert small == pytest.approx(((y - t) ** 2).mean() / energy, rel=1e-4)


def test_cosine_looks_at_directions_only(arrays) -> None:
    y, t = arrays
    wanted = 1 - ((y * t).sum(1) / np.linalg.norm(y, axis=1) / np.linalg.norm(t, axis=1)).mean()
    assert run(Term("cosine", "", "t"), y, t) == pytest.approx(wanted, rel=1e-4)
    assert run(Term("cosine", "", "t"), 3 * t, t) == pytest.approx(0.0, abs=1e-5)


def test_attention_maps_compare_other_widths() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(BATCH, 3, 4, 4)).astype(np.float32)
    t = rng.normal(size=(BATCH, 7, 4, 4)).astype(np.float32)

    def maps(a: np.ndarray) -> np.ndarray:
        energy = (a**2).sum(1).reshape(BATCH, -1)
        return energy / np.linalg.norm(energy, axis=1, keepdims=True)

    wanted = ((maps(y) - maps(t)) ** 2).sum(1).mean()
    assert run(Term("attention", "", "t"), y, t) == pytest.approx(wanted, rel=1e-4)
    assert fits("attention", y.shape, t.shape) and not fits("mse", y.shape, t.shape)


def test_terms_that_do_not_fit_are_refused(arrays) -> None:
    y, t = arrays
    with pytest.raises(ValueError, match="does not fit"):
        run(Term("kl", "", "t"), y, t[:, :5])
    with pytest.raises(ValueError, match="no labels"):
        run(Term("labels", ""), y, None)


def test_one_logit_learns_from_labels_by_binary_cross_entropy() -> None:
    z = np.array([[0.5], [-2.0], [3.0], [0.0]], np.float32)
    labels = np.array([1, 0, 0, 1])
    p = 1 / (1 + np.exp(-z[:, 0]))
    expected = -np.log(np.where(labels == 1, p, 1 - p)).mean()
    assert run(Term("labels", ""), z, None, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("opset", [11, 17])
def test_logits_are_found_before_softmax(opset: int) -> None:
    graph = student(6, softmax=True, opset=opset)
    assert logits_of(graph, graph.outputs[0]) is graph.nodes[0].outputs[0]
    plain = student(6, opset=opset)
    assert logits_of(plain, plain.outputs[0]) is plain.outputs[0]


@pytest.mark.parametrize(
    ("opset", "axis", "size", "found"),
    [(17, 1, 5, 1), (11, 1, 1, 1), (11, 1, 5, None), (17, 2, 5, None), (17, 3, 5, -1)],
)
def test_the_axis_of_classes_is_the_softmaxs_and_identities_pass(opset: int, axis: int, size: int, found) -> None:
    net = Net(opset=opset)
    x = net.input("n", 4, size, size)
    graph = decode(net.model(net.op("Identity", net.op("Softmax", net.op("Relu", x), axis=axis))))
    graph.outputs[0].shape = ("n", 4, size, size)
    known = softmax_of(graph, graph.outputs[0])
    assert (None if known is None else (known[0].producer.op, known[1])) == (found and ("Relu", found))
