"""Do cuts hold on graphs nobody thought of? Random nets of all supported layers, random cuts, and a deep one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import builders
import numpy as np
import pytest
from coupling_checks import OPERATORS, check_cuts, graph_of, some_units
from coupling_nets import attention
from hypothesis import given
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto

from onnxcomp.graph.coupling.analysis import analyse, components
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.shapes import infer


@dataclass
class State:
    """An image [N, channels, size, size] under construction and images of earlier steps."""

    net: Net
    x: str
    channels: int
    size: int
    draw: Callable[[int], int]
    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def to(self, x: str, channels: int | None = None, size: int | None = None) -> None:
        self.seen.append((self.x, self.channels, self.size))
        self.x, self.channels, self.size = x, channels or self.channels, size or self.size


def conv(s: State) -> None:
    width = 4 + 2 * s.draw(5)
    s.to(s.net.conv(s.x, s.channels, width, 1 + 2 * s.draw(1)), width)


def strided(s: State) -> None:
    if s.size >= 4:
        s.to(s.net.conv(s.x, s.channels, 8, 3, strides=[2, 2]), 8, -(-s.size // 2))


def depthwise(s: State) -> None:
    s.to(s.net.conv(s.x, s.channels, s.channels, group=s.channels))


def grouped(s: State) -> None:
    if s.channels % 2 == 0:
        s.to(s.net.conv(s.x, s.channels, 8, group=2), 8)


def normalize(s: State) -> None:
    s.to(s.net.batch_norm(s.x, s.channels))


def activate(s: State) -> None:
    s.to(s.net.op(("Relu", "HardSwish", "Tanh", "LeakyRelu", "Sigmoid")[s.draw(4)], s.x))


def excite(s: State) -> None:
    gate = s.net.op("Relu", s.net.conv(s.net.op("GlobalAveragePool", s.x), s.channels, 4, 1))
    s.to(s.net.op("Mul", s.x, s.net.op("Sigmoid", s.net.conv(gate, 4, s.channels, 1))))


def merge(s: State) -> None:
    """Residual Add, Mul or Concat with an earlier image of the same size."""
    for x, channels, size in reversed(s.seen):
        if size == s.size and channels == s.channels and s.draw(1):
            s.to(s.net.op(("Add", "Mul")[s.draw(1)], s.x, x))
            return
        if size == s.size and channels + s.channels < 40:
            s.to(s.net.op("Concat", x, s.x, axis=1), channels + s.channels)
            return


def widen(s: State) -> None:
    front, back = s.draw(3), s.draw(3)
    pads = [0, front, 0, 0, 0, back, 0, 0]
    s.to(s.net.op("Pad", s.x, s.net.const(pads)), s.channels + front + back)


def halve(s: State) -> None:
    if s.channels >= 6:
        first = 2 + s.draw(s.channels - 4)
        a, b = s.net.op("Split", s.x, s.net.const([first, s.channels - first]), axis=1, outputs=2)
        s.to(s.net.op("Concat", b, a, axis=1))


def take(s: State) -> None:
    if s.channels >= 6:
        step = 1 + s.draw(1)
        start = s.draw(s.channels - 4)
        left = len(range(start, s.channels, step))
        if left >= 2:
            ends, axes, steps = s.net.const([9999]), s.net.const([1]), s.net.const([step])
            s.to(s.net.op("Slice", s.x, s.net.const([start]), ends, axes, steps), left)


def gather(s: State) -> None:
    if s.channels >= 3:
        places = s.net.generator.permutation(s.channels)[: max(2, s.channels - 1)]
        s.to(s.net.op("Gather", s.x, s.net.const(places), axis=1), len(places))


def shuffle(s: State) -> None:
    if s.channels % 2 == 0:
        half, side = s.channels // 2, s.size
        x = s.net.op("Reshape", s.x, s.net.const([0, 2, half, side, side]))
        x = s.net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        s.to(s.net.op("Reshape", x, s.net.const([0, -1, side, side])))


def enlarge(s: State) -> None:
    if s.size <= 4:
        scales = s.net.const([1, 1, 2, 2], np.float32)
        s.to(s.net.op("Resize", s.x, "", scales, mode="nearest"), size=2 * s.size)


def attend(s: State) -> None:
    """Tokens of the image through attention and back."""
    tokens = s.net.op("Transpose", s.net.op("Reshape", s.x, s.net.const([0, s.channels, -1])), perm=[0, 2, 1])
    x = attention(s.net, s.net.dense(tokens, s.channels, 8), 8, 2)
    x = s.net.layer_norm(x, 8) if s.draw(1) else x
    image = s.net.op("Transpose", x, perm=[0, 2, 1])
    s.to(s.net.op("Reshape", image, s.net.const([0, 8, s.size, s.size])), 8)


LAYERS = (
    conv,
    strided,
    depthwise,
    grouped,
    normalize,
    activate,
    excite,
    merge,
    widen,
    halve,
    take,
    gather,
    shuffle,
    enlarge,
    attend,
)


@st.composite
def nets(draw: st.DrawFn) -> ModelProto:
    net = Net(seed=draw(st.integers(0, 1000)))
    start = net.conv(net.input("N", 3, 6, 6), 3, 8)
    state = State(net, start, 8, 6, lambda most: draw(st.integers(0, most)))
    for layer in draw(st.lists(st.sampled_from(LAYERS), min_size=2, max_size=9)):
        layer(state)
    outputs = [net.conv(state.x, state.channels, 3, 1)]
    flat = net.op("Flatten", net.op("GlobalAveragePool", state.x))
    outputs.append(net.gemm(flat, state.channels, 4))
    return net.model(*outputs)


@given(nets())
def test_any_cut_of_a_random_net_runs_and_zeroed_units_leave_without_a_trace(model: ModelProto) -> None:
    check_cuts(model, least_groups=0)


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=80))
def test_components_are_those_of_a_plain_search(count: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % count, b % count) for a, b in pairs]
    least = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            least[a] = least[b] = min(least[a], least[b])
    first, second = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    assert components(count, first, second).tolist() == least


@pytest.mark.parametrize("blocks", [100])
def test_analysis_and_cut_of_a_deep_net(blocks: int) -> None:
    """Five nodes a block; sizes agree with what inference says of the cut graph."""
    net = Net()
    x = net.conv(net.input(1, 3, 8, 8), 3, 32, 1)
    for _ in range(blocks):
        h = net.op("Relu", net.batch_norm(net.conv(x, 32, 32, 1), 32))
        x = net.op("Add", net.conv(h, 32, 32, 1), x)
    graph = graph_of(net.model(net.conv(x, 32, 3)))
    coupling = analyse(graph, OPERATORS)
    assert len(coupling.groups) == blocks + 1
    cut(coupling, some_units(coupling, coupling.groups, 0.5, seed=0))
    shapes = infer(graph)
    widths = {shapes.static(n.outputs[0])[1] for n in graph.nodes if n.op == "Relu"}
    assert widths == {16}


def test_transformer_block_runs_after_any_cut() -> None:
    """MiniLM's parts: embeddings looked up by ids, a mask, Gelu in parts, mean pooling over a computed count."""
    model = builders.transformer(heads=4)
    graph = graph_of(model)
    coupling = analyse(graph, OPERATORS, {k: v.shape for k, v in builders.transformer_feed().items()})
    cut(coupling, some_units(coupling, coupling.groups, 0.3, seed=0))
    from onnxcomp.graph.io import to_bytes

    feed = builders.transformer_feed()
    before, after = builders.run(model, feed), builders.run(to_bytes(graph), feed)
    assert before[0].shape == after[0].shape
