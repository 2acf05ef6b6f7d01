"""The forgetting budget: how far bits per byte of held-out text may rise above the start, and what is done beyond.

What a run has measured decides everything here, and every checkpoint carries that; so a run that was stopped goes on to
the same decision.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ahkio.core.errors import UserError
from ahkio.core.stage import Facts

Points = Mapping[str, Sequence[tuple[int, float]]]  # of each held-out set: (steps finished, bits per byte)


class Judged(NamedTuple):
    """One judging: the change of each limited set in per cent, and the sets that are over their limit."""

    step: int  # steps finished
    changes: dict[str, float]
    over: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most by which bits per byte of held-out sets may rise against the first measuring, in per cent.

    The measured values are compared as they are, without an interval, every so many steps and after the last. Beyond
    the limits `warn` says so; `stop` ends the run, and `keep` goes on, and the model of both is that of the last
    judging that held.
    """

    limits: tuple[tuple[str, float], ...] = ()  # (held-out set, per cent); none: no budget
    action: Literal["warn", "stop", "keep"] = "warn"
    every: int = 100  # steps; not the run's measure_every, as the result may depend on it

    def __post_init__(self) -> None:
        names = [name for name, _ in self.limits]
        if len(set(names)) < len(names):
            raise UserError(f"budget.limits names a set twice ({', '.join(names)}); give each one limit.")
        if low := [name for name, most in self.limits if most < 0]:
            raise UserError(f"budget.limits has a limit below 0 for {low[0]!r}; a budget says what may be lost, in %.")
        if self.every < 1:
            raise UserError(f"budget.every is {self.every}; it is a number of steps, at least 1.")

    def check(self, sets: Sequence[str]) -> None:
        """Refuse a limit on a set that the run does not measure."""
        for name, _ in self.limits:
            if name not in sets:
                near = difflib.get_close_matches(name, sets, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"budget.limits names {name!r}, which is not in heldout; there: {', '.join(sets) or 'none'}.{hint}"
                )

    @property
    def chooses(self) -> bool:
        """Whether the budget decides which step's model the run gives."""
        return bool(self.limits) and self.action != "warn"

    def due(self, step: int, steps: int) -> bool:
        """Whether to judge after `step` of `steps`."""
        return bool(self.limits) and step > 0 and (step == steps or step % self.every == 0)

    def judged(self, points: Points, steps: int) -> list[Judged]:
        """All judgings so far of a run of `steps`, each of what was measured then against the first measuring."""
        curves = {name: dict(points.get(name, ())) for name, _ in self.limits}
        due = [step for step in next(iter(curves.values()), {}) if self.due(step, steps)]
        return [self._judge(curves, step) for step in due if all(step in curve for curve in curves.values())]

    def _judge(self, curves: Mapping[str, Mapping[int, float]], step: int) -> Judged:
        changes = {name: 100 * (curve[step] / next(iter(curve.values())) - 1) for name, curve in curves.items()}
        return Judged(step, changes, tuple(name for name, most in self.limits if not changes[name] <= most))

    def stops(self, points: Points, steps: int) -> bool:
        """Whether the run ends here."""
        return self.action == "stop" and any(one.over for one in self.judged(points, steps))

    def held(self, points: Points, steps: int) -> int | None:
        """The step of the last judging that held; None where none has, or where the budget does not choose."""
        steps_held = [one.step for one in self.judged(points, steps) if not one.over]
        return steps_held[-1] if self.chooses and steps_held else None

    def saves(self, points: Points, step: int, steps: int) -> bool:
        """Whether the checkpoint of `step` is needed: its model may be the run's, or the run ends with it."""
        return self.held(points, steps) == step or self.stops(points, steps)

    def model_step(self, points: Points, done: int, steps: int) -> int:
        """Which step's model the run gives that ended after `done` of `steps`. UserError where none held."""
        if not self.chooses:
            return done
        held = self.held(points, steps)
        if held is None:
            raise UserError(
                f"The budget was broken at every judging: {self.story(points, steps)}; lower schedule.peak, give "
                "these texts a larger share of the mix, judge earlier (budget.every), or allow more (budget.limits)."
            )
        return held

    def facts(self, points: Points, documents: Mapping[str, int], done: int, steps: int) -> Facts:
        """What the manifest, the card and `ahkio build` say of the run that ended after `done` of `steps`; `documents`
        are those of each held-out set."""
        judged, model_step = self.judged(points, steps), self.model_step(points, done, steps)
        told = next(one for one in judged if one.step == model_step)
        limits = {
            name: {
                "at_most": most,
                "documents": documents[name],
                "before": points[name][0],
                "change": told.changes[name],
            }
            for name, most in self.limits
        }
        allowed = _listed(f"+{most:g}% on {name} ({documents[name]:,} documents)" for name, most in self.limits)
        return {
            "action": self.action,
            "every": self.every,
            "limits": limits,
            "judged": [one._asdict() for one in judged],
            "broken": any(one.over for one in judged),
            "stopped": self.stops(points, steps),
            "planned_steps": steps,
            "model_step": model_step,
            "verdict": f"bits per byte at most {allowed}; {self.story(points, steps)}",
        }

    def story(self, points: Points, steps: int) -> str:
        """What came of the budget, in words."""
        judged = self.judged(points, steps)
        if not (broken := [one for one in judged if one.over]):
            return f"held at all {len(judged)} judgings, in the end {self.told(judged[-1])}"
        first = f"broken after step {broken[0].step:,} of {steps:,} ({self.told(broken[0])})"
        if self.action == "warn":
            return f"{first}, in the end {self.told(judged[-1])}"
        held = self.held(points, steps)
        stop = ", where the run was stopped" if self.stops(points, steps) else ""
        return f"{first}{stop}" if held is None else f"{first}{stop}; the model is that of step {held:,}"

    def told(self, one: Judged) -> str:
        """A judging in words: each change beside its limit."""
        return _listed(f"{name} {one.changes[name]:+.2f}% of +{most:g}%" for name, most in self.limits)


def _listed(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
