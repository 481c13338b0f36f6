"""Which of several results is taken? Limits of soundness, what counts as better, and what goes before what."""

from __future__ import annotations

from onnxcomp import recipes
from onnxcomp.results import Accuracy, Benchmark, Fidelity, ModelStats
from onnxcomp.runtime.closeness import EXACT_DB
from onnxcomp.runtime.quantiles import chance_of
from onnxcomp.verify.agreement import in_words
from onnxcomp.verify.budget import ROUNDING, Budget
from onnxcomp.verify.enough import Limits
from onnxcomp.work.trial import Measured

# The default run's own limits where no budget is given. They catch a collapse; a budget says what is wanted.
COLLAPSED_SQNR_DB = 10.0
COLLAPSED_DROP = 0.02
AGREES = 0.95  # below this share of equal decisions the first line says so, and another recipe is preferred
KEEPS = 0.99  # what keeps all but a point of the decisions goes before what does not, where no metric says what counts
CHANCE = 0.05  # that so many decisions change where as many are kept as promised
WORTH_SPEED = 1 - COLLAPSED_DROP  # what a metric may lose, decisions may for a clearly faster result; no more
ALIKE = 0.08  # two times that differ by less are one, for the choice between recipes
WORTH_DB, LIKE_SIZE = 6.0, 1.3
WORTH_SHARE = 0.99  # a size is better when it is at most this share of the original
CLEARLY_FASTER, SMALL_SHARE = 0.8, 0.4  # of the original's time and size: no recipe that computes in float does better
COVERED = 0.9  # share of a model's MACs: where so much is integer, no other recipe can gain much


def unsound(fidelity: Fidelity | None, accuracy: Accuracy | None, budget: Budget) -> str:
    """Why a result is not to be trusted, by the budget or the default run's own limits; empty when it is."""
    allowed = COLLAPSED_DROP if budget.max_drop is None else budget.max_drop
    if accuracy is not None and accuracy.drop > allowed + ROUNDING:
        return f"{accuracy.metric} falls by {accuracy.drop:.4f} on {accuracy.samples:,} samples, more than {allowed:g}"
    if fidelity is None or fidelity.identical:
        return ""
    if fidelity.untold:
        return f"the rows of output {fidelity.untold[0]} depend on the values, and nothing tells whether they are right"
    worst = fidelity.worst_db
    least = COLLAPSED_SQNR_DB if budget.min_sqnr is None else budget.min_sqnr
    if worst is not None and worst < least:
        return f"SQNR {worst:.1f} dB is below {least:g} dB{_where(fidelity)}"
    agreement = fidelity.least_agreeing
    needed = AGREES if worst is None and budget.min_agreement is None else budget.min_agreement
    if needed is not None and agreement is not None and (agreement.value or 0.0) < needed:
        return f"{in_words(agreement)}, less than {needed:.0%}"
    return "outputs changed beyond comparison" if worst is None and agreement is None else ""


def limits_of(budget: Budget, seed: int) -> Limits:
    """What a verdict depends on: the budget, the default run's own limits, and the share that the first line needs."""
    return Limits(
        sqnr_db=_given(COLLAPSED_SQNR_DB, budget.min_sqnr),
        agreement=_given(AGREES, budget.min_agreement),
        drop=_given(COLLAPSED_DROP, budget.max_drop),
        seed=seed,
    )


def disagreeing(fidelity: Fidelity | None) -> str:
    """In words where the new model decides otherwise too often to be called accepted without them; else empty."""
    found = fidelity.least_agreeing if fidelity is not None else None
    if found is None or found.value is None or found.value >= AGREES:
        return ""
    return in_words(found)


def better(before: ModelStats, after: ModelStats, benchmark: Benchmark | None, objective: str) -> bool:
    """Whether a result is an improvement: smaller or faster, and for latency never slower."""
    smaller = after.bytes <= before.bytes * WORTH_SHARE
    faster = benchmark is not None and benchmark.outcome == "faster"
    slower = benchmark is not None and benchmark.outcome == "slower"
    if objective == "size":
        return smaller
    if objective == "macs":
        return after.macs < before.macs
    return (smaller or faster) and not slower


def score(found: Measured, objective: str) -> float:
    """What a result is worth by the objective; lower is better. Bytes stand for a latency that was not measured."""
    if objective == "size":
        return float(found.bytes)
    if objective == "macs":
        return float(found.macs)
    if objective == "accuracy":
        return float("-inf") if found.sqnr_db is None else -found.sqnr_db
    return float(found.bytes) if found.latency_ratio is None else found.latency_ratio


def agrees(found: Measured, budget: Budget) -> int:
    """How well a result decides as the original does: 2 but for a point, 1 nearly always, 0 less often than that.

    A budget for decisions says itself what is enough; where a metric is measured its own limit does. Of so few samples
    that a point is less than one of them nothing is told of a point.
    """
    if budget.min_agreement is not None or found.agreement is None:
        return 2
    if found.agreement < AGREES:
        return 0
    few = found.decided is not None and found.decided * (1 - KEEPS) < 1
    return 2 if found.agreement >= KEEPS or found.drop is not None or few else 1


def promised(chosen: Measured, budget: Budget) -> float:
    """The share of decisions that a result was chosen for; 0 where a budget or a metric says what is enough."""
    if budget.min_agreement is not None or chosen.agreement is None or chosen.drop is not None:
        return 0.0
    return max((limit for limit in (KEEPS, WORTH_SPEED, AGREES) if chosen.agreement >= limit), default=0.0)


def broken(judged: Measured, promise: float) -> bool:
    """Whether samples that judge show fewer decisions kept than promised, beyond what chance brings.

    A share chosen by has luck in it: of a few samples, some of which calibrated, the best of several results.
    """
    if judged.agreement is None or not judged.decided:
        return False
    changed = int((1 - judged.agreement) * judged.decided + ROUNDING)
    return chance_of(changed, judged.decided, 1 - promise) < CHANCE


def keeps(found: Measured, budget: Budget) -> bool:
    """Whether nothing need be tried for the sake of decisions."""
    return agrees(found, budget) == 2


def preferred(found: Measured, other: Measured, objective: str, budget: Budget) -> bool:
    """Whether a sound result goes before another.

    One that decides as the original does, but for a point, goes before one that does so nearly always, unless for
    latency that one loses a second point at most and is clearly faster; and that before one that does not. For latency
    times within ALIKE say nothing; then what keeps WORTH_DB more at a like size is better, then what is smaller.
    """
    mine, theirs = score(found, objective), score(other, objective)
    mine_agrees, theirs_agrees = agrees(found, budget), agrees(other, budget)
    if mine_agrees != theirs_agrees:
        slow, fast = (mine, theirs) if mine_agrees > theirs_agrees else (theirs, mine)
        lesser = other if mine_agrees > theirs_agrees else found
        near = min(mine_agrees, theirs_agrees) == 1 and lesser.agreement is not None and lesser.agreement >= WORTH_SPEED
        worth = objective == "latency" and near and fast <= CLEARLY_FASTER * slow
        return (mine_agrees > theirs_agrees) is not worth
    if objective != "latency" or abs(mine / theirs - 1) > ALIKE:
        return mine < theirs
    size, kept = found.bytes / max(other.bytes, 1), _kept_db(found) - _kept_db(other)
    if abs(kept) >= WORTH_DB and 1 / LIKE_SIZE <= size <= LIKE_SIZE:
        return kept > 0
    return size < 1


def enough(best: Measured, recipe: recipes.Recipe, before_bytes: int) -> bool:
    """Whether a recipe need not be tried for latency once there is `best`, which decides as the original does.

    A recipe without integers cannot do better than what is clearly faster and small; the last resorts are there only
    if all else fails.
    """
    if recipe.integer:
        return False
    fast_and_small = score(best, "latency") <= CLEARLY_FASTER and best.bytes <= SMALL_SHARE * before_bytes
    return fast_and_small or recipe.name in recipes.LAST_RESORT


def ends_search(found: Measured, recipe: recipes.Recipe, integer_share: float, objective: str, budget: Budget) -> bool:
    """Whether nothing after a sound and better result need be tried: its integer arithmetic covers nearly all work."""
    return objective == "latency" and recipe.integer and keeps(found, budget) and integer_share >= COVERED


def _given(*limits: float | None) -> tuple[float, ...]:
    return tuple(limit for limit in limits if limit is not None)


def _where(fidelity: Fidelity) -> str:
    """Which part of which output is the worst, where there are several."""
    for name, output in fidelity.outputs.items():
        if output.decibels == fidelity.worst_db and (output.worst_part or len(fidelity.outputs) > 1):
            return f" (output {name}{f', {output.worst_part}' if output.worst_part else ''})"
    return ""


def _kept_db(found: Measured) -> float:
    return EXACT_DB if found.sqnr_db is None else found.sqnr_db
