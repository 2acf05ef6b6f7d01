"""Kill a small run on a mesh again and again, at random moments, and hold what becomes of it to the run that was left
alone: `python tests/meshes/kill.py --moments 30 --log kills.md`.

A round is one run from nothing to its end. It goes on by itself: the workers are started again by `ahkio build`, and
that is started again when it was killed or asked to stop.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from small_run import metrics, weights

from ahkio.core import state
from ahkio.core.artifact import Artifact

RECIPE = """\
from dataclasses import replace
from small_run import TRAIN as run
from ahkio.core.mesh import Mesh
TRAIN = replace(run, mesh=Mesh({axis}=2), steps=12, heldout_context=32, heldout_documents=3, micro_batch=3)
"""
MESHES = ("shard", "pipe")
MOMENTS = ("start", "step", "save", "measuring", "publish")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP")
WHOM = ("one", "all", "parent")
PATIENCE = 12  # seconds, of a process for another
SLOW = ("train.objective.pause=0.1", "train.measure_every=4", "train.save_every=1", f"train.patience={PATIENCE}")
ASKED = (-signal.SIGKILL, -signal.SIGTERM, 75)  # how `ahkio build` ends that was killed or asked to stop
LIMIT = 240.0  # seconds for what comes after a kill


@dataclass(frozen=True)
class Kill:
    moment: str
    signal: str
    whom: str


@dataclass
class Round:
    """A run under way: its recipe, where its artifacts are, and what was done to it."""

    folder: Path
    recipe: Path
    dice: random.Random
    process: "subprocess.Popen[bytes] | None" = None
    log: list[dict[str, object]] = field(default_factory=list)
    starts: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def draft(self) -> Path:
        return next(iter(self.runs.glob("artifacts/train-*.draft")), self.runs / "none")

    @property
    def words(self) -> str:
        return (self.folder / "words.txt").read_text()


def start(run: Round, *overrides: str, restarts: int = 99) -> None:
    """`ahkio build` of the recipe; its words and its workers' go to words.txt."""
    command = [sys.executable, "-m", "ahkio", "build", str(run.recipe), *overrides, f"train.restarts={restarts}"]
    with open(run.folder / "words.txt", "ab") as words:
        run.process = subprocess.Popen(
            [*command, "--runs", str(run.runs)], stdout=words, stderr=words, env=environment(), start_new_session=True
        )
    run.starts += 1


def environment() -> dict[str, str]:
    here = Path(__file__).parents
    path = os.pathsep.join([str(here[2] / "src"), str(here[1])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def workers(parent: int) -> dict[int, int]:
    """The process of each rank that `parent` has started."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, KeyError, ValueError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                told = dict(line.split("=", 1) for line in (stat.parent / "environ").read_text().split("\0") if line)
                found[int(told["RANK"])] = int(stat.parent.name)
    return found


def keep_going(run: Round) -> bool:
    """Start what was killed or asked to stop again; whether there is a run."""
    assert run.process is not None
    status = run.process.poll()
    if status in ASKED:
        start(run, *SLOW)
    elif status is not None:
        assert status == 0, f"status {status} after {run.log}:\n{run.words[-4000:]}"
    return status != 0


def wait_for(run: Round, moment: str, before: set[int]) -> bool:
    """Whether the moment came, of workers other than those `before`, in this run."""
    seen = drafts(run), lines(run)
    end = time.monotonic() + LIMIT
    while keep_going(run):
        assert time.monotonic() < end, f"no {moment} after {run.log}:\n{run.words[-4000:]}"
        assert run.process is not None
        if came(run, moment, *seen) and (moment != "start" or set(workers(run.process.pid).values()) - before):
            time.sleep(run.dice.random() * {"start": 6, "save": 0.01}.get(moment, 0.4))
            return run.process.poll() is None
        time.sleep(0.002)
    return False


def came(run: Round, moment: str, drafts_before: set[str], lines_before: int) -> bool:
    if moment == "start":
        return True
    if moment == "save":
        return bool(drafts(run) - drafts_before)
    if moment == "publish":
        return (run.draft / "model").exists()
    taken = lines(run)
    return taken not in (0, lines_before) and (moment == "step" or taken % 4 == 0)


def drafts(run: Round) -> set[str]:
    return {path.name for path in (run.draft / "checkpoints").glob("*.tmp")}


def lines(run: Round) -> int:
    with contextlib.suppress(OSError):
        return (run.draft / "metrics.jsonl").read_text().count("\n")
    return 0


def strike(run: Round, kill: Kill) -> set[int]:
    """Send the signal; what is stopped is killed when its fellows have noticed. Return the workers there were."""
    assert run.process is not None
    there = workers(run.process.pid)
    ranks = sorted(there)
    hit = {"one": [there[rank] for rank in run.dice.sample(ranks, min(1, len(ranks)))], "all": list(there.values())}
    pids = hit.get(kill.whom, [run.process.pid])
    found = {"seconds": round(time.monotonic() - run.began, 1), "steps": lines(run)}
    found |= {"drafts": sorted(drafts(run)), "checkpoints": check(run)}
    told = len(run.words)
    send(pids, kill.signal)
    run.log.append(asdict(kill) | found | {"ranks": [rank for rank, pid in there.items() if pid in pids]})
    if kill.signal == "SIGSTOP":
        run.log[-1]["noticed"] = noticed(run, told) if kill.whom == "one" else None
        send(pids, "SIGKILL")
    return set(there.values())


def send(pids: list[int], name: str) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.Signals[name])


def noticed(run: Round, told: int) -> bool:
    """Whether the others said that they miss a process."""
    end = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < end and "processes" not in run.words[told:]:
        time.sleep(0.1)
    return "processes" in run.words[told:]


def check(run: Round) -> list[str]:
    """The finished checkpoints, of which none may be damaged, not even one that is being deleted."""
    names = []
    for path in state.checkpoints(run.draft / "checkpoints"):
        try:
            state.read_state(path)
        except ValueError:
            assert not path.exists(), f"{path} is torn"  # else it was swept while it was read
        names.append(path.name)
    return names


def live(run: Round, kills: list[Kill], wanted: Artifact) -> None:
    """One run, killed so, to its end; then it is what it should be."""
    try:
        start(run, *SLOW)
        before: set[int] = set()
        for kill in kills:
            if not wait_for(run, kill.moment, before):
                break
            before = strike(run, kill)
        end = time.monotonic() + LIMIT
        while keep_going(run):
            assert time.monotonic() < end, f"not done after {run.log}:\n{run.words[-4000:]}"
            time.sleep(0.05)
    finally:
        stop(run)
    same(made(run), wanted)


def stop(run: Round) -> None:
    if run.process is not None:
        send([*workers(run.process.pid).values(), run.process.pid], "SIGKILL")
        run.process.wait(60)


def made(run: Round) -> Artifact:
    (path,) = (path for path in run.runs.glob("artifacts/train-*") if path.suffix != ".draft")
    return Artifact(path)


def same(found: Artifact, wanted: Artifact) -> None:
    assert weights(found.path) == weights(wanted.path)
    assert metrics(found.path) == metrics(wanted.path)
    for fact in ("ledger", "trained_tokens", "loss_first", "loss_last", "skipped"):
        assert found.facts[fact] == wanted.facts[fact], fact
    last = [{name: points[-1] for name, points in one.facts["bits_per_byte"].items()} for one in (found, wanted)]
    assert last[0] == last[1]
    assert [path.name for path in (found.path / "checkpoints").iterdir()] == ["step-00000012"]


def open_round(folder: Path, axis: str, seed: object, inputs: Path | None = None) -> Round:
    folder.mkdir(parents=True)
    recipe = folder / "life.py"
    recipe.write_text(RECIPE.format(axis=axis))
    if inputs:
        shutil.copytree(inputs, folder / "runs" / "artifacts")
    return Round(folder, recipe, random.Random(f"{seed}"))


def unbroken(folder: Path, axis: str, inputs: Path | None = None) -> Artifact:
    """The run on that mesh, left alone."""
    run = open_round(folder, axis, 0, inputs)
    start(run)
    try:
        assert run.process is not None
        assert run.process.wait(LIMIT) == 0, run.words[-4000:]
    finally:
        stop(run)
    return made(run)


def plan(dice: random.Random, count: int) -> list[Kill]:
    """So many kills in the order in which their moments come in a run."""
    moments = sorted((dice.choice(MOMENTS[:4]) for _ in range(count - 1)), key=lambda name: name != "start")
    return [Kill(moment, dice.choice(SIGNALS), dice.choice(WHOM)) for moment in [*moments, "publish"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="write what was done here: .json, or else Markdown")
    args = parser.parse_args()
    dice, log = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        wanted = {axis: unbroken(folder / axis, axis) for axis in MESHES}
        for number in range(1000):
            axis = MESHES[number % 2]
            inputs = folder / f"inputs-{number}"
            shutil.copytree(wanted[axis].path.parent, inputs, ignore=shutil.ignore_patterns("train-*"))
            run = open_round(folder / f"round-{number}", axis, f"{args.seed} {number}", inputs)
            began = time.monotonic()
            live(run, plan(dice, min(6, args.moments - len(log))), wanted[axis])
            log += [{"round": number, "mesh": f"{axis} 2"} | one for one in run.log]
            print(f"round {number}, {axis} 2: {len(run.log)} kills, {run.starts} starts, the same to the bit; "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
            if args.log:
                write(args.log, args.seed, log)
            if len(log) >= args.moments:
                break


def write(path: Path, seed: int, log: list[dict[str, object]]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(log, indent=1))
        return
    counts = Counter((one["moment"], f"{one['signal']} {one['whom']}") for one in log)
    kinds = sorted({kind for _, kind in counts})
    rows = [["moment", *kinds], ["---"] * (len(kinds) + 1)]
    rows += [[moment, *(str(counts[moment, kind]) for kind in kinds)] for moment in MOMENTS]
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
    hung = [one["noticed"] for one in log if one.get("noticed") is not None]
    path.write_text(
        f"# {len(log)} kills, seed {seed}\n\nEach run ended in the bits of one that was left alone. Of {len(hung)} "
        f"hung ranks {sum(map(bool, hung))} were noticed by the others.\n\n{table}\n\n"
        + "".join(f"- {json.dumps(one)}\n" for one in log)
    )


if __name__ == "__main__":
    main()
