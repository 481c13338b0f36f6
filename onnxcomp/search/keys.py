"""What is a search told beside its job? The fields of one dataclass, from which the flags come."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.settings import setting

# name -> what it does, a line of help
SAMPLERS = {
    "climb": "grow the best one pass at a time, then vary the best few",
    "tpe": "tree-structured Parzen estimators, multi-objective (Bergstra 2011, Ozaki 2020)",
    "random": "random search (Bergstra and Bengio 2012)",
    "evolutionary": "NSGA-II, multi-objective (Deb 2002)",
    "sensitivity": "each pass alone, then joined greedily by loss for gain, as layer-wise sensitivity does",
    "bisect": "each setting's threshold by bisection on held-out samples, as cross-validation does",
    "rounds": "iterative: prune a step, retrain, repeat (Han 2015)",
    "predicted": "hardware-aware: varied points ranked by additive tables of time and loss fitted to the trials",
}
DEFAULT = "climb"


@dataclass(frozen=True)
class SearchKeys:
    """What a search is told beside the job."""

    trials: int | None = setting(
        "Trials in all, those of earlier runs counted.", default=None, minimum=1, metavar="N", group="First"
    )
    time_limit: str | None = setting(
        "How long to search: 15m, 2h, 90s; 15m where --trials is not given either.",
        default=None,
        metavar="T",
        group="First",
    )
    sampler: str = setting("What says what to try next.", default=DEFAULT, choices=tuple(SAMPLERS), group="First")
    study: str | None = setting(
        "Where trials are kept: a file, or the URL of a storage of Optuna; beside the output if not given.",
        default=None,
        metavar="URL",
    )
    workers: int = setting("Trials at a time, each in a process of its own.", default=1, minimum=1, maximum=1024)
    dask: str | None = setting(
        "The scheduler of a Dask cluster whose workers run the trials.", default=None, metavar="tcp://HOST:PORT"
    )
    without: tuple[str, ...] = setting("A pass that is not tried.", default=(), metavar="PASS", group="Training")
