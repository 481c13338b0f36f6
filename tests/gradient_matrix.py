"""Runs inside the training environment: are the gradients of many models right, and does their loss fall?

    python gradient_matrix.py FOLDER_OF_WORKER CASES

CASES is a folder with NAME.onnx, NAME.npz (feeds) and NAME.json (trainable, statistics, lr, steps). One JSON line a
case goes to stdout: {"case", "loss", "median", "wrong", "losses", "same"} or {"case", "error"}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

PIECES, THREADS = 4, 4


def load(case: Path, *, smooth: bool, pieces: int = 1, threads: int = 1) -> Any:
    from worker import gradient

    asked = json.loads(case.with_suffix(".json").read_text())
    made = gradient.Trainable(
        gradient.read(str(case)),
        loss="loss",
        trainable=asked["trainable"],
        statistics=asked["statistics"],
        threads=threads,
        provider="CPUExecutionProvider",
        pieces=pieces,
        smooth=smooth,
    )
    with np.load(case.with_suffix(".npz")) as feeds:
        for name, place in made.feeds.items():
            place[...] = feeds[name]
    return made


def same_with_threads(case: Path) -> bool:
    """Whether a batch of several pieces has the same loss and gradient, to the byte, for any number of threads."""
    found = []
    with np.load(case.with_suffix(".npz")) as feeds:
        arrays = {name: np.concatenate([np.roll(array, i, -1) for i in range(PIECES)]) for name, array in feeds.items()}
    for threads in (1, THREADS):
        made = load(case, smooth=False, pieces=PIECES, threads=threads)
        rows = np.arange(PIECES * made.batch)
        for _ in range(2):
            found.append((made.gradient(arrays, rows), made.evaluate(arrays, rows), made.grads.vector.tobytes()))
    return len(set(found)) == 1


def run(case: Path) -> dict[str, object]:
    from worker import gradient, selfcheck

    asked = json.loads(case.with_suffix(".json").read_text())
    made = load(case, smooth=False)
    rows = np.arange(made.batch)
    loss = made.evaluate({}, rows)
    rounds = gradient.rounds(gradient.read(str(case)))
    median, wrong = selfcheck.check(load(case, smooth=True) if rounds else made, {}, rows, 0)
    losses = []
    for _ in range(asked["steps"]):
        losses.append(made.gradient({}, rows))
        size = float(np.linalg.norm(made.grads.vector))
        made.values.vector -= np.float32(asked["lr"] / max(size, 1e-3)) * made.grads.vector
    losses.append(made.gradient({}, rows))
    found = {"loss": loss, "median": median, "wrong": wrong, "losses": losses}
    return found | {"same": asked["statistics"] != [] or same_with_threads(case)}


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", buffering=1)  # the runtime prints on its own
    os.dup2(2, 1)
    sys.path.insert(0, sys.argv[1])
    from worker import gradient
    from worker.channel import RefusedError

    gradient.prepare()
    for case in sorted(Path(sys.argv[2]).glob("*.onnx")):
        try:
            found = run(case)
        except RefusedError as error:
            found = {"error": str(error)}
        channel.write(json.dumps({"case": case.stem, **found}) + "\n")


if __name__ == "__main__":
    main()
