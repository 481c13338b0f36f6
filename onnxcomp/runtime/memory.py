"""How much memory may a run take beside its models, and what is each stage's share of it?"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BYTES = 2 << 30
MOST_SHARE = 0.5  # of the machine's memory
LEAST_BYTES = 64 << 20  # below it, single tensors of ordinary models do not fit


@dataclass(frozen=True)
class Memory:
    """One budget, and what is taken from it. Stages follow one another, so that shares need not add up to one.

    Attributes:
        total: bytes.
        cut: why it is less than was asked for; empty where it is not.
    """

    total: int = DEFAULT_BYTES
    cut: str = ""

    @classmethod
    def of(cls, asked: float | None, machine_bytes: int | None) -> Memory:
        """The budget of a run on a machine.

        Args:
            asked: bytes; None for the default.
            machine_bytes: what the machine has; None where that is unknown.
        """
        wanted = int(max(LEAST_BYTES, DEFAULT_BYTES if asked is None else asked))
        most = wanted if machine_bytes is None else max(LEAST_BYTES, int(machine_bytes * MOST_SHARE))
        if wanted <= most:
            return cls(wanted)
        return cls(most, f"half of this machine's {machine_bytes / 2**30:.1f} GiB" if machine_bytes else "")

    @property
    def activations(self) -> int:
        """Tensors that one run of a model hands out together."""
        return self.total // 8

    @property
    def inside(self) -> int:
        """Tensors that a model holds while it runs on one batch."""
        return self.total // 8

    @property
    def moments(self) -> int:
        """Second moments of layers that are measured together."""
        return self.total // 4

    @property
    def staged(self) -> int:
        """Activations of all samples that wait for the nodes behind them; what is more lies on the disk."""
        return self.total // 4

    @property
    def rows(self) -> int:
        """Rows of layers that are held to be solved together."""
        return self.total // 8

    @property
    def trained(self) -> int:
        """Activations and gradients of the rows that train at a time, in a process of their own."""
        return self.total // 2

    @property
    def kept(self) -> int:
        """Weights of graphs that pipelines began with, kept for others that begin alike."""
        return self.total // 4

    def __str__(self) -> str:
        return f"{self.total / 2**30:.3g} GiB"
