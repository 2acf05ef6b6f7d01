"""Two trainings side by side: bits per byte in the loop and losses. A run keeps one figure for each set and step, no
items, so what changed is told without an interval and never called better or worse."""

from collections.abc import Sequence

from ahkio.core.artifact import Artifact
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts
from ahkio.evaluate.paired import BITS, differing, flat, text_of

Curve = Sequence[tuple[float, float]]  # (step, value)

LAST = 0.05  # of the steps that both took are averaged for the last loss
ASIDE = ("is", "version", "start", "heldout")  # not settings of training
NOT_TESTED = "not tested"


def compare_runs(before: Artifact, after: Artifact, losses: tuple[Curve, Curve], *, common: bool) -> Facts:
    """What changed from one Train to another, whose losses by step are `losses`.

    {"rows": bits per byte of each set after the last step of each run, and the loss of the last steps that both took,
    as `compare` has them but with null for what takes items; "missing", "settings"; "same_batches": whether each step
    read the same rows}. Raises UserError where sets of one name hold other text, unless the `common` ones are wanted.
    """
    sides = before.facts[BITS], after.facts[BITS]
    missing, rows = [], []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        if why := _difference(before, after, name):
            if name in sides[0] and name in sides[1] and not common:
                raise UserError(
                    f"{name}: {why}; compare an Evaluate of each model, or the sets that they have in common: --common."
                )
            missing.append({"kind": BITS, "set": name, "why": why})
        else:
            rows.append(_row(BITS, name, "bits per byte", sides[0][name][-1][1], sides[1][name][-1][1]))
    rows += _loss_row(*losses)
    if not rows:
        raise UserError(f"{before.path.name} and {after.path.name} have no held-out set or step in common to compare.")
    return {"rows": rows, "missing": missing} | _settings(before, after)


def _difference(before: Artifact, after: Artifact, name: str) -> str:
    for side in (before, after):
        if not side.facts[BITS].get(name):
            return f"not measured by {side.path.name}"
    first, second = ((text_of(side, name), side.manifest["what"].get("heldout_documents")) for side in (before, after))
    return "" if first == second else f"{before.path.name} and {after.path.name} did not measure the same text"


def _loss_row(before: Curve, after: Curve) -> list[Facts]:
    first, second = dict(before), dict(after)
    shared = sorted(set(first) & set(second))
    last = shared[-max(1, int(len(shared) * LAST)) :]
    if not last:
        return []
    means = [sum(side[step] for step in last) / len(last) for side in (first, second)]
    return [_row("loss", "training", f"loss, {len(last)} step(s) to {last[-1] + 1:,.0f}", *means)]


def _row(kind: str, name: str, metric: str, before: float, after: float) -> Facts:
    untested = {"interval": None, "items": None, "test": None, "p": None, "p_adjusted": None, "items_needed": None}
    change = {"change": 100 * (after / before - 1), "unit": "%"}
    told = {"kind": kind, "set": name, "metric": metric, "better": "lower", "before": before, "after": after}
    return told | change | untested | {"verdict": NOT_TESTED}


def _settings(before: Artifact, after: Artifact) -> Facts:
    whats = [side.manifest["what"] for side in (before, after)]
    settings = (dict(flat({key: value for key, value in what.items() if key not in ASIDE})) for what in whats)
    batches = [[what.get(key) for key in ("mix", "rows")] for what in whats]
    return {"settings": differing(*settings), "same_batches": batches[0] == batches[1]}
