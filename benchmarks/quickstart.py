"""Claim: from a bare clone to a model card in minutes, with the packages in pip's cache.

Clones HEAD of this repository into a folder of its own and runs `make quickstart` there. Beside the wall time stand the
seconds of each kind of stage, which the run itself writes into its summary.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from bench import OURS, Contender, Line, Round, main

REPOSITORY = Path(__file__).parent.parent
MAKES_ITS_OWN = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")  # the clone has an environment of its own

LINES = (
    Line(
        setting="clone-to-card",
        title="quickstart, bare clone to card",
        unit="minutes",
        contenders=(OURS,),
        bar=12.0,
        goal=6.0,
        higher=False,
        absolute=True,
        rounds=1,
        warm=0,
    ),
)


def contender(_setting: str, _name: str) -> Contender:
    return quickstart


def quickstart() -> Round:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "ahkio"
        began = perf_counter()
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
        make = ["make", "quickstart", f"PYTHON={sys.base_prefix}/bin/python3"]
        environment = {name: value for name, value in os.environ.items() if name not in MAKES_ITS_OWN}
        subprocess.run(make, cwd=clone, env=environment, check=True)
        minutes = (perf_counter() - began) / 60
        assert (clone / "runs/quickstart/model/README.md").is_file()
        summary = json.loads((clone / "runs/quickstart/summary.json").read_text())
        (metrics,) = clone.glob("runs/artifacts/train-*/metrics.jsonl")
        losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    by_stage: dict[str, float] = {}
    for artifact, seconds in summary["seconds_by_stage"].items():
        stage = artifact.rpartition("-")[0]
        by_stage[stage] = by_stage.get(stage, 0.0) + seconds
    return {"value": minutes, "seconds_by_stage": by_stage, "peak_memory_bytes": summary["peak_memory_bytes"]} | {
        "losses": losses
    }


if __name__ == "__main__":
    if "--quick" in sys.argv:
        sys.exit("The quickstart takes minutes and has no quick form; run benchmarks/quickstart.py without --quick.")
    main(__file__, LINES, contender)
