"""`ahkio benchmarks`: the table that Evaluate puts, in each preset side by side, so that what differs is seen."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from ahkio.commands.request import Parsers, default_runs
from ahkio.evaluate.benchmarks import PRESETS, SUITES, Benchmark, Benchmarks, PresetName


def add_to(commands: Parsers) -> None:
    does = "print the benchmarks with their shots and metrics, and how the presets differ"
    parser = commands.add_parser(
        "benchmarks",
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog="Example: ahkio benchmarks --languages en,sv. The figures of two evaluations: ahkio compare A B",
    )
    parser.add_argument("--languages", default="en,fi", metavar="CODES", help="by commas, such as en,fi,sv (en,fi)")
    parser.add_argument("--suites", default=",".join(SUITES), metavar="NAMES", help="by commas (all)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run, overrides=[], runs=default_runs())


def run(args: argparse.Namespace) -> int:
    languages, suites = (tuple(text.split(",")) for text in (args.languages, args.suites))
    table = Benchmarks(languages=languages, suites=suites)
    tables = {name: replace(table, preset=name) for name in PRESETS}
    found = record(tables)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found, Console(highlight=False))
    return 0


def record(tables: Mapping[PresetName, Benchmarks]) -> dict[str, Any]:
    """ "settings" and "tasks", each with its value in every preset; a row that "differs" says so."""
    settings = [row("BOS before each prompt", {name: _bos(table) for name, table in tables.items()})]
    settings.append(row("chat template", dict.fromkeys(tables, "none")))
    lines = zip(*(table.table() for table in tables.values()), strict=True)
    return {"settings": settings, "tasks": [_task(dict(zip(tables, alike, strict=True))) for alike in lines]}


def row(what: str, values: dict[str, str]) -> dict[str, Any]:
    return {"what": what, "presets": values, "differs": len(set(values.values())) > 1}


def _bos(table: Benchmarks) -> str:
    return "where the tokenizer has one" if table.bos else "none"


def _task(alike: dict[str, Benchmark]) -> dict[str, Any]:
    first = next(iter(alike.values()))
    about = {"task": first.task, "language": first.language, "shots": first.shots}
    return about | row(first.name, {name: ", ".join(line.metrics) for name, line in alike.items()})


def show(found: dict[str, Any], console: Console) -> None:
    table = Table()
    for head in ("", "task", "language", "shots", *PRESETS):
        table.add_column(head, overflow="fold")
    for one in (*found["settings"], *found["tasks"]):
        cells = [str(one.get(key, "")) for key in ("task", "language", "shots")]
        table.add_row(one["what"], *cells, *one["presets"].values(), style="yellow" if one["differs"] else "")
    console.print(table)
    differing = [one.get("task", one["what"]) for one in (*found["settings"], *found["tasks"]) if one["differs"]]
    console.print(f"The presets differ in: {', '.join(differing)}.")
