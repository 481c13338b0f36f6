"""One run of training: steps, looks at the held-out loss, the best kept, an early stop, checkpoints."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .channel import Array, Channel, RefusedError
from .checkpoint import Checkpoints
from .constraints import Keeper
from .gradient import Trainable
from .optimizer import Schedule, Stepper


@dataclass
class Looking:
    """When to look at the held-out loss, and what follows; see `onnxcomp.distill.task.TrainingTask`."""

    every: int
    patience: int
    keep_best: bool


@dataclass
class Best:
    """The parameters with the lowest held-out loss so far."""

    step: int = -1
    loss: float = math.inf
    values: Array | None = None
    statistics: dict[str, Array] = field(default_factory=dict)


@dataclass
class Run:
    """Training from where it stands to its end.

    Attributes:
        stop: set by a signal: finish the step, then end.
        step: steps done.
        losses, rates: of every step done.
        held_out: (step, loss) of every look.
    """

    made: Trainable
    arrays: Mapping[str, Array]
    order: Array
    held_out_rows: Array
    stepper: Stepper
    schedule: Schedule
    keeper: Keeper
    looking: Looking
    checkpoints: Checkpoints
    channel: Channel
    stop: threading.Event
    step: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    seconds: list[float] = field(default_factory=list)
    resumed_from: int = 0

    def train(self) -> str:
        """Run; returns how it ended: `done`, `early` or `interrupted`."""
        ended = self._go()
        if self.looking.keep_best and self.best.values is not None:
            self.made.values.vector[...] = self.best.values
            for name, array in self.best.statistics.items():
                self.made.statistics[name][...] = array
        return ended

    @property
    def best_step(self) -> int:
        """The step whose parameters are given back."""
        return self.best.step if self.looking.keep_best and self.best.values is not None else self.step

    def _go(self) -> str:
        total = len(self.order)
        if not self.resume():
            self.keeper.apply(0.0)
            self._look()
        while self.step < total:
            if self._patience_is_out():
                return "early"
            if self.stop.is_set():
                if self.checkpoints.path:
                    self.save()
                return "interrupted"
            self._one_step()
            last = self.step == total
            if last or (self.looking.every and self.step % self.looking.every == 0):
                self._look()
            if not last and self.checkpoints.due(self.step):
                self.save()
        return "done"

    def _one_step(self) -> None:
        start = time.perf_counter()
        rate = self.schedule.rate(self.step)
        loss = self.made.gradient(self.arrays, self.order[self.step])
        if math.isfinite(loss):
            self.keeper.mask_gradients(self.made.grads.vector)
            norm = self.stepper.step(self.made.values.vector, self.made.grads.vector, rate)
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise RefusedError(
                "diverged",
                f"training diverged: the {what} of step {self.step + 1} is not finite",
                where=f"learning rate {rate:.3g}, last loss {self.losses[-1] if self.losses else loss:.4g}",
                do="lower the learning rate, warm up longer or clip the gradient; check that the data hold no NaN",
            )
        self.keeper.apply(rate)
        self.step += 1
        self.losses.append(loss)
        self.rates.append(rate)
        self.seconds.append(time.perf_counter() - start)
        self.channel.send_step(
            last=self.step == len(self.order), step=self.step, loss=loss, rate=rate, seconds=self.seconds[-1]
        )

    def _look(self) -> None:
        """The mean loss of the held-out batches."""
        if not len(self.held_out_rows):
            return
        loss = self.made.evaluate(self.arrays, self.held_out_rows.reshape(-1))
        if not math.isfinite(loss):
            raise RefusedError(
                "diverged",
                f"training diverged: the held-out loss after step {self.step} is not finite",
                do="lower the learning rate, warm up longer or clip the gradient; check that the data hold no NaN",
            )
        self.held_out.append((self.step, loss))
        if loss < self.best.loss:
            self.best = Best(self.step, loss)
            if self.looking.keep_best:
                self.best.values = self.made.values.vector.copy()
                self.best.statistics = {name: array.copy() for name, array in self.made.statistics.items()}
        self.channel.send("held_out", step=self.step, loss=loss, best=self.best.step)

    def _patience_is_out(self) -> bool:
        if not self.looking.patience or self.best.step < 0:
            return False
        since = sum(1 for step, _ in self.held_out if step > self.best.step)
        return since >= self.looking.patience

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all that the next step depends on."""
        arrays: dict[str, Array] = {
            "values": self.made.values.vector,
            "losses": np.asarray(self.losses, np.float64),
            "rates": np.asarray(self.rates, np.float64),
            "held_out": np.asarray(self.held_out, np.float64).reshape(-1, 2),
            **{f"state.{name}": vector for name, vector in self.stepper.state.items()},
            **{f"statistics.{i}": array for i, array in enumerate(self.made.statistics.values())},
        }
        if self.best.values is not None:
            arrays["best.values"] = self.best.values
            arrays |= {f"best.statistics.{i}": array for i, array in enumerate(self.best.statistics.values())}
        facts = {
            "step": self.step,
            "count": self.stepper.count,
            "best_step": self.best.step,
            "best_loss": self.best.loss if math.isfinite(self.best.loss) else None,
        }
        self.checkpoints.write(arrays, facts)
        self.channel.send("checkpoint", step=self.step)

    def resume(self) -> bool:
        """Go on from the checkpoint of this job, where there is one."""
        found = self.checkpoints.read()
        if found is None:
            return False
        arrays, facts = found
        names = list(self.made.statistics)
        self.made.values.vector[...] = arrays["values"]
        for name, vector in self.stepper.state.items():
            vector[...] = arrays[f"state.{name}"]
        for i, name in enumerate(names):
            self.made.statistics[name][...] = arrays[f"statistics.{i}"]
        self.losses, self.rates = arrays["losses"].tolist(), arrays["rates"].tolist()
        self.held_out = [(int(step), loss) for step, loss in arrays["held_out"].tolist()]
        self.step, self.stepper.count = facts["step"], facts["count"]
        best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self.best = Best(facts["best_step"], best_loss, arrays.get("best.values"))
        if self.best.values is not None:
            self.best.statistics = {name: arrays[f"best.statistics.{i}"] for i, name in enumerate(names)}
        self.resumed_from = self.step
        self.channel.send("resumed", step=self.step)
        return True


def facts_of(run: Run, ended: str) -> dict[str, Any]:
    """What the parent is told at the end, arrays aside."""
    return {
        "ended": ended,
        "best_step": run.best_step,
        "resumed_from": run.resumed_from,
        "step_seconds": float(np.median(run.seconds)) if run.seconds else 0.0,
    }
