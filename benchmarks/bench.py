"""The harness of the benchmarks: ours and theirs side by side in one run, and the table made from what was found.

    python benchmarks/bench.py              every claim, then the table in benchmarks/README.md
    python benchmarks/train_step.py         one claim, and the table
    python benchmarks/train_step.py --quick its first line in under 50 s: one JSON line, exit code 1 below the bar

A claim is a file that holds LINES and `contender`, and ends with `main(__file__, LINES, contender)`. Every contender
runs in a process of its own that is kept for all rounds; the rounds of all contenders alternate, so that a noisy
machine is noisy for each of them; while one works the others wait without using a core.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ahkio.core import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
OURS = "ahkio"
PACKAGES = (
    "ahkio", "torch", "transformers", "trl", "litgpt", "lm_eval", "datatrove", "megatron-core", "tokenizers",
    "fastokens",
)  # fmt: skip
MARKS = ("<!-- table -->", "<!-- end of table -->")

Round = dict[str, Any]  # of one contender: "value", and what else is worth keeping; "check" has to agree among them
Contender = Callable[[], Round]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: a setting in which contenders are compared."""

    setting: str  # a short name, unique in its file
    title: str  # what is measured, for the table
    unit: str
    contenders: tuple[str, ...]  # ours is called "ahkio"
    apart: tuple[str, ...] = ()  # contenders that do other work: measured, shown, and not in the ratio
    bar: float  # of the ratio to the best rival; or of our own value, in `unit`, where `absolute`
    goal: float
    higher: bool = True  # is better
    absolute: bool = False  # the bar is on our own value: at most (or at least, where higher) so much
    rounds: int = 5
    warm: int = 1  # rounds before those, which are not counted
    quick: tuple[str, ...] = ()  # the contenders under --quick, where all would take too long
    quick_rounds: int = 2
    alone: bool = False  # one contender's rounds after the other's, where memory has no room for all at once
    agree: float = 0.0  # how far the contenders' "check" may be from ours, relative
    note: str = ""
    only_asked: bool = False  # run by --setting alone, as it takes long


def main(file: str, lines: Sequence[Line], contender: Callable[[str, str], Contender]) -> None:
    """The command line of a claim. `contender(setting, name)` sets one up and returns what runs one round of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the first line only, few rounds, one JSON line")
    parser.add_argument("--setting", choices=[line.setting for line in lines], help="this line only")
    parser.add_argument("--work", nargs=2, metavar=("SETTING", "NAME"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        _work(contender, *asked.work)
    elif asked.quick:
        line = replace(lines[0], contenders=lines[0].quick or lines[0].contenders)
        found = compare(Path(file), line, line.quick_rounds)
        print(json.dumps({"claim": Path(file).stem, "setting": line.setting} | found["verdict"]))
        sys.exit(not found["verdict"]["passed"])
    else:
        kept = _read(Path(file).stem).get("lines", {})
        for line in lines:
            if asked.setting == line.setting or (asked.setting is None and not line.only_asked):
                kept[line.setting] = compare(Path(file), line, line.rounds)
                print(f"{line.title}: {_summary(kept[line.setting])}", flush=True)
        known = {line.setting: kept[line.setting] for line in lines if line.setting in kept}
        write(Path(file).stem, known)
        write_table()


def compare(file: Path, line: Line, rounds: int) -> dict[str, Any]:
    """Run the contenders of a line in turn."""
    groups = [(name,) for name in line.contenders] if line.alone else [line.contenders]
    found: dict[str, list[Round]] = {}
    for names in groups:
        found |= _rounds(file, line, names, rounds)
    _check(line, found)
    figures = {name: _figures(replies) for name, replies in found.items()}
    return asdict(line) | {"figures": figures, "verdict": verdict(line, figures), "stamp": stamp()}


def _rounds(file: Path, line: Line, names: Sequence[str], rounds: int) -> dict[str, list[Round]]:
    workers = {name: _Worker(file, line.setting, name) for name in names}
    found: dict[str, list[Round]] = {name: [] for name in names}
    try:
        for _ in range(line.warm + rounds):
            for name, worker in workers.items():
                found[name].append(worker.round())
    finally:
        for worker in workers.values():
            worker.stop()
    return {name: replies[line.warm :] for name, replies in found.items()}


def verdict(line: Line, figures: dict[str, Any]) -> dict[str, Any]:
    """The ratio of medians to the best rival, above 1 where ours is better; and whether the bar is reached."""
    ours = figures[OURS]["median"]
    rivals = {name: figure["median"] for name, figure in figures.items() if name not in (OURS, *line.apart)}
    best = (max if line.higher else min)(rivals, key=lambda name: rivals[name]) if rivals else None
    ratio = None if best is None else (ours / rivals[best] if line.higher else rivals[best] / ours)
    judged = ours if line.absolute else ratio
    passed = judged >= line.bar if line.higher or not line.absolute else judged <= line.bar
    return {"ratio": ratio, "ours": ours, "best_rival": best, "bar": line.bar, "passed": bool(passed)}


def stamp() -> dict[str, Any]:
    versions = {name: machine.package_version(name) for name in PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine.cpu_name()}, {machine.cores()} cores"
        + (", bf16 instructions" if machine.cpu_has_bf16() else ", no bf16 instructions")
        + _gpu(),
        "versions": {name: version for name, version in versions.items() if version},
    }


def write(name: str, lines: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"lines": lines}, indent=1) + "\n")


def write_table() -> None:
    """Put all results between the marks of README.md."""
    rows = ["| what | ours | best rival | ratio | bar | goal | |", "|---|---|---|---|---|---|---|"]
    stamps = set()
    for path in sorted(RESULTS.glob("*.json")):
        for line in _read(path.stem)["lines"].values():
            rows.append(_row(path.stem, line))
            stamps.add(_stamp_text(line["stamp"]))
    text = (HERE / "README.md").read_text()
    head, _, rest = text.partition(MARKS[0])
    tail = rest.partition(MARKS[1])[2]
    body = "\n".join([*rows, "", *sorted(stamps)])
    (HERE / "README.md").write_text(f"{head}{MARKS[0]}\n{body}\n{MARKS[1]}{tail}")


def _row(name: str, line: dict[str, Any]) -> str:
    figures, found, unit = line["figures"], line["verdict"], line["unit"]
    rival = found["best_rival"]
    theirs = "" if rival is None else f"{_spread(figures[rival])} ({rival})"
    ratio = "" if found["ratio"] is None else f"**{found['ratio']:.2f}x**"
    kind = f" {unit}" if line["absolute"] else "x"
    verdict = "reached" if found["passed"] else "**below the bar**"
    apart = [f"{name} {_spread(figures[name])}" for name in line.get("apart", ())]
    note = "".join(f"; {text}" for text in (line["note"], *apart) if text)
    return (
        f"| [{line['title']}]({name}.py), {unit} | {_spread(figures[OURS])} | {theirs} | {ratio} "
        f"| {line['bar']:g}{kind} | {line['goal']:g}{kind} | {verdict}{note} |"
    )


def _spread(figure: dict[str, Any]) -> str:
    return f"{figure['median']:.4g} ({figure['low']:.4g}-{figure['high']:.4g})"


def _summary(found: dict[str, Any]) -> str:
    medians = ", ".join(f"{name} {figure['median']:.4g}" for name, figure in found["figures"].items())
    return f"{medians} {found['unit']}; {found['verdict']}"


def _stamp_text(stamp: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    return f"- {stamp['date']}: {stamp['machine']}; {versions}"


def _figures(replies: Sequence[Round]) -> dict[str, Any]:
    values = [reply["value"] for reply in replies]
    last = {key: value for key, value in replies[-1].items() if key != "value"}
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": values} | last


def _check(line: Line, found: dict[str, list[Round]]) -> None:
    """Refuse to compare contenders that did not compute the same."""
    ours = found[OURS][-1].get("check")
    for name, replies in found.items():
        theirs = replies[-1].get("check")
        if ours is None or theirs is None:
            continue
        same = ours == theirs if isinstance(ours, str) else abs(ours - theirs) <= line.agree * abs(ours)
        if not same:
            sys.exit(f"{line.setting}: {name} computed {theirs!r} and ahkio {ours!r}; they are not the same work.")


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


# ---------------------------------------------------------------------------------------------------------------------
# One contender's process


class _Worker:
    def __init__(self, file: Path, setting: str, name: str) -> None:
        self.name = f"{file.stem}, {setting}, {name}"
        command = [sys.executable, str(file), "--work", setting, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self) -> Round:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            sys.exit(f"{self.name}: the process ended with code {self.process.wait()}.")
        return json.loads(reply)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _work(contender: Callable[[str, str], Contender], setting: str, name: str) -> None:
    """Set up at the first request, then a round and a line of JSON for each; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run: Contender | None = None
    for _ in sys.stdin:
        run = run or contender(setting, name)
        print(json.dumps(run()), file=answers, flush=True)


def all_claims() -> None:
    for path in sorted(HERE.glob("*.py")):
        if path.name != Path(__file__).name:
            print(f"\n== {path.stem}", flush=True)
            subprocess.run([sys.executable, str(path)], check=False)
    write_table()


if __name__ == "__main__":
    all_claims()
