"""Which outputs of a stateful model go back into which inputs, and how do steps of a sequence become samples?

A sample of a stateful model is one step: its inputs and the state that the float model has reached before it. The
state is found by running the sequence from its beginning once, and kept in a temporary file.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.inputs import InputSpec, OutputSpec
from onnxcomp.errors import UsageError

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]
Run = Callable[[dict[str, Array]], Mapping[str, Array]]

WINDOW_STEPS = 64  # a stream of unknown beginning and end is cut into sequences of so many steps
LEAST_WINDOWS = 16  # or of fewer, so that there are about so many to share out
_OVER = {"in", "input", "out", "output", "new", "old", "prev", "previous", "next", "past", "present", "cur", "current"}
_OVER |= {"initial", "init", "final", "last", "updated", "n", "t", "o", "i"}
_SHORT = re.compile(r"([a-z])[n0t1]?")  # h, h0, hn, c_n


@dataclass(frozen=True)
class State:
    """An output that is the input of the next step."""

    output: str
    input: str


def states_of(
    inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec], given: Mapping[str, str] | None = None
) -> tuple[State, ...]:
    """Pairs by name, type and shape: stateN and state, hn and h0, out_cache1 and in_cache1, present.3.key and its past.

    Args:
        given: output -> input, as the user says; then nothing is guessed.

    Raises:
        UsageError: a name that the model does not have, or a pair of other types or shapes.
    """
    if given:
        return tuple(_checked(output, name, inputs, outputs) for output, name in given.items())
    found: list[State] = []
    for spec in inputs:
        taken = {state.output for state in found}
        same = [o for o in outputs if o.name not in taken and _alike(o, spec) and _same_thing(o.name, spec.name)]
        exact = [o for o in same if _words(o.name) == _words(spec.name)]
        for choice in (exact, same):
            if len(choice) == 1:
                found.append(State(choice[0].name, spec.name))
                break
    return tuple(found)


def _checked(output: str, name: str, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> State:
    to = next((spec for spec in inputs if spec.name == name), None)
    source = next((spec for spec in outputs if spec.name == output), None)
    if to is None or source is None:
        what, names = ("input", [s.name for s in inputs]) if to is None else ("output", [s.name for s in outputs])
        raise UsageError(
            f"the model has no {what} {name if to is None else output!r}",
            where=f"--state {output}={name}",
            do=f"its {what}s are {', '.join(names)}; write --state OUTPUT=INPUT",
        )
    if not _alike(source, to):
        raise UsageError(
            f"the output {output} cannot be the input {name}: {source} and {to}",
            where=f"--state {output}={name}",
            do="name two of one type and shape",
        )
    return State(output, name)


def _alike(output: OutputSpec, spec: InputSpec) -> bool:
    if output.dtype != spec.dtype or spec.shape is None or not spec.shape:
        return False
    if not output.shape:
        return True
    pairs = zip(output.shape, spec.shape, strict=False)
    return len(output.shape) == len(spec.shape) and not any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
    )


def _same_thing(output: str, name: str) -> bool:
    if output == name:
        return False
    a, b = _words(output), _words(name)
    digits = [[w for w in words if w.isdigit()] for words in (a, b)]
    return bool(a and b) and digits[0] == digits[1] and (set(a) <= set(b) or set(b) <= set(a))


def _words(name: str) -> list[str]:
    """A name's words in lower case without those that tell before from after."""
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.findall(r"[a-z]+|\d+", parts.lower())
    short = _SHORT.fullmatch("".join(words))
    if short is not None:
        return [short.group(1)]
    return [w for w in words if w not in _OVER]


def zeros_for(spec: InputSpec) -> Array:
    """The state before the first step: zeros, the batch of one sample, and nothing along other free axes."""
    assert spec.shape is not None
    sizes = [d if isinstance(d, int) else int(axis == spec.axis) for axis, d in enumerate(spec.shape)]
    return np.zeros(sizes, spec.dtype)


def windows(steps: int) -> list[Indices]:
    """A stream cut into sequences of equal length, the rest at its end left out."""
    length = int(np.clip(steps // LEAST_WINDOWS, 2, WINDOW_STEPS)) if steps > 1 else 1
    return [np.arange(start, start + length) for start in range(0, steps - length + 1, length)]


class Carry:
    """Gives a model the states that it reached itself, step after step, where samples are steps of sequences.

    Attributes:
        step: the number of the last step in its sequence; None where samples stand alone.
        carried: outputs that are states.

    Args:
        states: which output is which input of the next step; none where samples stand alone.
        starts: which of the samples begin a sequence, in their order.
    """

    def __init__(self, states: Sequence[State] = (), starts: Sequence[bool] | npt.NDArray[np.bool_] = ()) -> None:
        self._states, self._starts = states, iter(starts)
        self._held: dict[str, Array] = {}
        self.carried = frozenset(state.output for state in states)
        self.step: int | None = None

    def into(self, feed: dict[str, Array]) -> dict[str, Array]:
        """The feed of the next step, with the states of the step before it."""
        if not self._states:
            return feed
        if next(self._starts, True):
            self.step = 0
            return feed
        self.step = (self.step or 0) + 1
        return {**feed, **self._held}

    def keep(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs of this step, as they are; their states are kept."""
        self._held = {state.input: np.asarray(outputs[state.output]) for state in self._states}
        return outputs


class Unrolled:
    """The states before each step, found once for each sequence and kept in a temporary file.

    Args:
        read: the inputs of one step, without states.
        states: which output is which input of the next step.
        first: the states before the first step, by input.
        sequences: indices of the steps of each sequence.
    """

    def __init__(
        self,
        read: Callable[[int], dict[str, Array]],
        states: Sequence[State],
        first: Mapping[str, Array],
        sequences: Sequence[Indices],
    ) -> None:
        self._read, self._states, self._first = read, states, dict(first)
        self.sequence_of = np.concatenate([np.full(len(steps), i) for i, steps in enumerate(sequences)])
        self._sequences = sequences
        self._place: dict[int, dict[str, tuple[int, tuple[int, ...]]]] = {}
        self._file: IO[bytes] | None = None
        self.run: Run | None = None

    def before(self, step: int) -> dict[str, Array]:
        """The states that the float model has before a step."""
        steps = self._sequences[int(self.sequence_of[step])]
        if step == steps[0]:
            return dict(self._first)
        if step not in self._place:
            self._unroll(steps)
        return {name: self._get(name, *place) for name, place in self._place[step].items()}

    def _unroll(self, steps: Indices) -> None:
        assert self.run is not None, "a stateful model's samples are read before its session is there"
        states = dict(self._first)
        for step, following in itertools.pairwise(steps):
            outputs = self.run({**self._read(int(step)), **states})
            states = {state.input: np.asarray(outputs[state.output]) for state in self._states}
            self._place[int(following)] = {name: self._put(array) for name, array in states.items()}

    def _put(self, array: Array) -> tuple[int, tuple[int, ...]]:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the data set
        place = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(array).tobytes())
        return place, array.shape

    def _get(self, name: str, place: int, shape: tuple[int, ...]) -> Array:
        assert self._file is not None
        dtype = self._first[name].dtype
        self._file.seek(place)
        data = self._file.read(int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)
