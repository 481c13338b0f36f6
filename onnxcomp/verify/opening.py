"""How does data for a model file become samples that the model is known to take?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from onnxcomp.data.dataset import Dataset
from onnxcomp.data.feeds import Spooled
from onnxcomp.data.inputs import Interface, interface_of
from onnxcomp.data.open import Source, is_stream, open_data
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.data.states import State, states_of
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.memory import Memory
from onnxcomp.verify.batching import settle
from onnxcomp.verify.made_up import made_up_for
from onnxcomp.verify.opened import OpenedModel


class Opener:
    """Opens data for one model.

    Args:
        model: the file.
        shapes: sizes for free dimensions, by input.
        states: of a stateful model, which output is which input of the next step; guessed where none is given.
        runs: whether the model may be run, to find out how many samples it takes at a time.
        memory: what runs on these samples may take.

    Raises:
        ModelError: the file cannot be used.
        UsageError: `states` or `shapes` do not fit the model.
    """

    def __init__(
        self,
        model: Path | OpenedModel,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        states: Mapping[str, str] | None = None,
        runs: bool = True,
        memory: Memory = Memory(),  # noqa: B008 (frozen)
    ) -> None:
        self.memory = memory
        self.model, self.shapes, self.runs = OpenedModel.of(model), shapes, runs
        self.graph = self.model.graph
        self._given = states
        self._streams: dict[int, tuple[Any, Spooled]] = {}

    @cached_property
    def interface(self) -> Interface:
        """What the model takes and gives."""
        return interface_of(self.graph)

    @cached_property
    def states(self) -> tuple[State, ...]:
        """Which outputs are inputs of the next step."""
        return states_of(self.interface.inputs, self.interface.outputs, self._given)

    def open(
        self, data: Source, *, preprocess: Preprocess | None = None, labels: Any = None, settled: bool = True
    ) -> Dataset:
        """A data source as samples of this model.

        Args:
            settled: find out by running how many samples go together; False where `settle` is called with others.

        Raises:
            DataError: as `open_data`.
        """
        source = cast(Source, self._kept(data)) if is_stream(data) else data
        found = self._opened(source, preprocess, labels)
        if self.runs and any(spec.axis for spec in self.interface.inputs) and not self._takes(found):
            found = self._along_axis_0(source, preprocess, labels) or found
        if settled:
            self.settle(found)
        return found

    def _opened(self, source: Source, preprocess: Preprocess | None, labels: Any) -> Dataset:
        return open_data(
            source,
            self.interface.inputs,
            preprocess=preprocess,
            labels=labels,
            metadata=self.interface.metadata,
            shapes=self.shapes,
            states=self.states,
        )

    def _along_axis_0(self, source: Source, preprocess: Preprocess | None, labels: Any) -> Dataset | None:
        """Samples along axis 0 of each input, where the model runs on such a one; None where it does not."""
        guessed = self.interface
        moved = [replace(spec, axis=0) if spec.axis else spec for spec in guessed.inputs]
        self.interface = replace(guessed, inputs=tuple(moved))
        with suppress(DataError):
            found = self._opened(source, preprocess, labels)
            if self._takes(found):
                first = next(spec for spec in guessed.inputs if spec.axis)
                found.remark(
                    f"samples of {first.name} lie along axis 0, found by running the model: along axis {first.axis}, "
                    "where a recurrent layer has its batch, it runs on none alone"
                )
                return found
        self.interface = guessed
        return None

    def _takes(self, dataset: Dataset) -> bool:
        """Whether the model runs on a single sample."""
        try:
            self.model.plain().run(next(dataset.samples().batches(1)))
        except (DataError, ModelError):
            return False
        return True

    def _kept(self, stream: Any) -> Spooled:
        """The feeds of an iterator, read once however often they are opened."""
        if id(stream) not in self._streams:
            self._streams[id(stream)] = stream, Spooled(stream, self.interface.inputs, "the given data")
        return self._streams[id(stream)][1]

    def settle(self, *datasets: Dataset) -> None:
        """Let all data sets keep what running the model on the first one proves."""
        if self.runs:
            settle(self.model, *datasets, memory=self.memory)

    def made_up(self, samples: int, seed: int = 0) -> Dataset:
        """Made-up samples that the model runs on.

        Raises:
            ModelError, DataError: as `made_up_for`.
        """
        found = made_up_for(self.model, self.interface.inputs, samples, seed, self.shapes)
        self.settle(found)
        return found
