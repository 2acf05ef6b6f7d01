"""What a user waits for before anything happens: whole processes, from start to exit."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from bench import OURS, Contender, Line, Round, main

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "help": ("--help",),
    "plan-8b": ("plan", "recipes/poro2_8b.py"),
    "plan-quickstart": ("plan", "recipes/quickstart.py"),
}


def line(setting: str, bar: float, goal: float) -> Line:
    return Line(
        setting=setting,
        title=f"`ahkio {' '.join(COMMANDS[setting])}`, start to exit",
        unit="s",
        contenders=(OURS,),
        bar=bar,
        goal=goal,
        higher=False,
        absolute=True,
    )


LINES = [line("help", 0.3, 0.2), line("plan-8b", 2.0, 0.5), line("plan-quickstart", 2.0, 1.0)]


def contender(setting: str, name: str) -> Contender:
    def run() -> Round:
        with tempfile.TemporaryDirectory() as runs:
            options = () if setting == "help" else ("--runs", runs)
            began = perf_counter()
            command = [sys.executable, "-m", "ahkio", *COMMANDS[setting], *options]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            return {"value": perf_counter() - began}

    return run


if __name__ == "__main__":
    main(__file__, LINES, contender)
