"""What does the worker do? It reads one job from standard input, does it, and says in JSON lines how it goes.

Jobs: `train`, `check` (the gradient self-check alone), `moments` (means of gradients) and `forward` (outputs). A job's
arrays lie in files that it names; so do the results. The worker ends when its parent does: standard input closes then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np

from .channel import PROTOCOL, Array, Channel, RefusedError, opened
from .checkpoint import Checkpoints, write_arrays

ORPHANED = 130


def main() -> int:
    """Run the job; 0 where it was done, 1 where the last event is an error."""
    channel = Channel()
    start = time.perf_counter()
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        job = json.loads(_line())
        threading.Thread(target=_end_with_parent, daemon=True).start()
        import onnx
        import onnxruntime

        from . import gradient

        gradient.prepare()
        versions = {"python": sys.version.split()[0], "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
        channel.send("hello", protocol=PROTOCOL, versions=versions, seconds=time.perf_counter() - start)
        if job["protocol"] != PROTOCOL:
            raise RefusedError("protocol", f"the client speaks protocol {job['protocol']}, the worker {PROTOCOL}")
        Job(job, channel, stop).run()
        return 0
    except RefusedError as refused:
        channel.send(**refused.event)
    except MemoryError:
        channel.send(**RefusedError("memory", "memory ran out", do="train with a smaller batch").event)
    except Exception as error:
        traceback.print_exc()
        channel.send(**RefusedError("defect", f"the worker failed: {type(error).__name__}: {error}").event)
    return 1


class Job:
    """One job, opened."""

    def __init__(self, job: dict[str, Any], channel: Channel, stop: threading.Event) -> None:
        from . import gradient

        self.job = job
        self.channel = channel
        self.stop = stop
        self.folder: str = job["folder"]
        self.model = gradient.read(self._path("model.onnx"))
        self.arrays = {name: opened(self.folder, entry) for name, entry in job["arrays"].items()}
        self.order: Array = opened(self.folder, job["order"])
        self.held_out: Array = opened(self.folder, job["held_out"])

    def run(self) -> None:
        """Do what the job asks."""
        if self.job["command"] == "forward":
            self._forward()
            return
        command = {"train": self._train, "check": self._check, "moments": self._moments}[self.job["command"]]
        made = self._made()
        self.channel.send("ready", parameters=len(made.values.vector))
        command(made)

    def _train(self, made: Any) -> None:
        from .constraints import Bound, Keeper, groups_of
        from .loop import Looking, Run, facts_of
        from .optimizer import Schedule, Stepper, settings_of

        job = self.job
        settings = settings_of(job["optimizer"])
        bounds = {
            name: Bound(**{key: np.array(opened(self.folder, entry)) for key, entry in kept.items()})
            for name, kept in job["constraints"].items()
        }
        groups = groups_of(job["groups"], made.values.views)
        run = Run(
            made,
            self.arrays,
            self.order,
            self.held_out,
            Stepper(settings, made.values.places, len(made.values.vector)),
            Schedule(**job["schedule"], steps=len(self.order)),
            Keeper(made.values, bounds, job["l1"], groups, job["group_strength"], settings.scales),
            Looking(**job["looking"]),
            Checkpoints(**job["checkpoint"]),
            self.channel,
            self.stop,
        )
        error = self._proven(made) if job["check_gradients"] and len(self.order) else None
        ended = run.train()
        self._results(made.values.views | made.statistics, losses=run.losses, rates=run.rates, held_out=run.held_out)
        self.channel.send("done", **facts_of(run, ended), gradient_error=error, peak_memory_bytes=_peak_bytes())

    def _check(self, made: Any) -> None:
        error = self._proven(made)
        self.channel.send("done", gradient_error=error, peak_memory_bytes=_peak_bytes())

    def _forward(self) -> None:
        """What the graph gives, as inference computes it, for the arrays as they are."""
        from . import gradient

        names = self.job["outputs"]
        self._results(gradient.outputs_of(self.model, self.arrays, names, self.job["provider"]))
        self.channel.send("done")

    def _moments(self, made: Any) -> None:
        """Means over batches of the gradient, its square, and the square of weight times gradient."""
        values, grads = made.values.vector, made.grads.vector
        sums = [np.zeros(len(values), np.float64) for _ in range(3)]
        for step, rows in enumerate(self.order):
            loss = made.gradient(self.arrays, rows)
            if not np.isfinite(loss) or not np.isfinite(grads).all():
                raise RefusedError(
                    "diverged", f"the loss or gradient of batch {step} is not finite", do="check the data"
                )
            exact = grads.astype(np.float64)
            for i, value in enumerate((exact, exact**2, (values * exact) ** 2)):
                sums[i] += value
            last = step + 1 == len(self.order)
            self.channel.send_step(last=last, step=step + 1, loss=loss, rate=0.0, seconds=0.0)
        found: dict[str, Array] = {}
        for kind, total in zip(("mean", "square", "taylor"), sums, strict=True):
            mean = (total / len(self.order)).astype(np.float32)
            found |= {f"{kind}.{n}": mean[p].reshape(made.values.views[n].shape) for n, p in made.values.places.items()}
        self._results(found)
        self.channel.send("done", peak_memory_bytes=_peak_bytes())

    def _made(self, *, smooth: bool = False) -> Any:
        from .gradient import Trainable

        made = Trainable(
            self.model,
            loss=self.job["loss"],
            trainable=self.job["trainable"],
            statistics=self.job["statistics"],
            threads=self.job["threads"],
            provider=self.job["provider"],
            pieces=self._pieces(),
            smooth=smooth,
        )
        self._fit(made.feeds)
        return made

    def _pieces(self) -> int:
        """How many times the rows of the graph's batch a batch has."""
        name = next(iter(self.arrays), "")
        value = next((value for value in self.model.graph.input if value.name == name), None)
        dims = value.type.tensor_type.shape.dim if value is not None else []
        batch = dims[0].dim_value if len(dims) else 0
        rows: int = self.order.shape[1]
        return rows // batch if batch and rows % batch == 0 else 1

    def _fit(self, feeds: dict[str, Array]) -> None:
        """Every input has its data, of its type and shape, and every row exists."""
        for name, place in feeds.items():
            array = self.arrays.get(name)
            if array is None:
                raise RefusedError(
                    "data", f"no data for the input {name!r} of the training graph", where=f"input {name}"
                )
            if array.dtype != place.dtype or array.shape[1:] != place.shape[1:]:
                have, want = f"{array.dtype} {list(array.shape[1:])}", f"{place.dtype} {list(place.shape[1:])}"
                raise RefusedError("data", f"the input {name!r} takes {want} a sample, the data is {have}")
            for rows in (self.order, self.held_out):
                if not rows.size:
                    continue
                if rows.shape[1] % place.shape[0]:
                    what = f"batches of {rows.shape[1]} rows for a graph that takes {place.shape[0]}"
                    raise RefusedError("data", what, do="give whole multiples of what the graph takes")
                if int(rows.min()) < 0 or int(rows.max()) >= len(array):
                    raise RefusedError(
                        "data", f"rows up to {rows.max()} of {len(array)} samples", where=f"input {name}"
                    )

    def _proven(self, made: Any) -> float:
        """The self-check on the first batch; the median error."""
        from . import gradient, selfcheck

        probe = self._made(smooth=True) if gradient.rounds(self.model) else made
        median, wrong = selfcheck.check(
            probe, self.arrays, self.order[0], self.job["seed"], alive=lambda: self.channel.send("checking")
        )
        self.channel.send("check", error=median, wrong=[name for name, _, _ in wrong])
        if wrong or median > selfcheck.TOLERANCE:
            raise selfcheck.refusal(self.model, self.job["trainable"], median, wrong)
        return median

    def _results(self, tensors: dict[str, Array], **histories: Any) -> None:
        arrays = {f"tensor.{i}": array for i, array in enumerate(tensors.values())}
        names = np.frombuffer(json.dumps(list(tensors)).encode(), np.uint8)
        histories = {name: np.asarray(values, np.float64) for name, values in histories.items()}
        write_arrays(self._path("results.npz"), {"names": names, **arrays, **histories})

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)  # noqa: PTH118


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _line() -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            break
        found += part
    return found


def _end_with_parent() -> None:
    """Standard input ends when the parent does, however that came; nobody waits for this job then."""
    while os.read(0, 1 << 10):
        pass
    os._exit(ORPHANED)
