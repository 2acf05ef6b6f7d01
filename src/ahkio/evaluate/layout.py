"""Results as lm-eval's own command line leaves them: results.json, and samples_<task>.jsonl with all that was asked."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, sanitize_list

Facts = dict[str, Any]


def write_samples(folder: Path, task: str, samples: Iterable[Facts]) -> None:
    """What lm-eval's evaluation tracker writes of a task, without a date in the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"samples_{task}.jsonl", "w", encoding="utf-8") as file:
        for sample in samples:
            file.write(_line(sample) + "\n")


def _line(sample: Facts) -> str:
    asked = {
        f"gen_args_{number}": {f"arg_{place}": part for place, part in enumerate(args)}
        for number, args in enumerate(sample["arguments"])
    }
    plain = {name: sanitize_list(sample[name]) for name in ("resps", "filtered_resps")}
    row = sample | plain | {"arguments": asked, "target": str(sample["target"])}
    return json.dumps(row, default=handle_non_serializable, ensure_ascii=False)


def write_results(folder: Path, parts: Iterable[Facts], settings: Facts) -> None:
    """One results.json of what lm-eval said of each task; `settings` stand beside it at the top."""
    folder.mkdir(parents=True, exist_ok=True)
    merged: Facts = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = merged.get(key, {}) | value
    text = json.dumps(merged | settings, indent=2, default=handle_non_serializable, ensure_ascii=False)
    (folder / "results.json").write_text(_lasting(text) + "\n", encoding="utf-8")


def _lasting(text: str) -> str:
    """Without what differs from run to run: where functions lay in memory, and the folders of task files."""
    text = re.sub(r"(<function \w+) at 0x[0-9a-f]+>", r"\1>", text)
    return re.sub(r'("config_source": ")[^"]*/', r"\1", text)
