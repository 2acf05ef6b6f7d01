"""`ahkio tokenizer report`: what tokenizers make of a text, beside each other."""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from ahkio.commands.request import Parsers
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts
from ahkio.release.record import short
from ahkio.text.sources import JsonLines, Parquet, Source, Tally, TextFiles

if TYPE_CHECKING:
    from ahkio.tokens.tokenizer import Encoder

DOES = "say what a tokenizer makes of a text, beside others"
TOKENIZER = "a folder with tokenizer.json, such a file, a .gguf file, or package:NAME/FILE in an installed package"
COLUMNS: dict[str, Callable[[Facts], str]] = {
    "tokens/word": lambda one: f"{one['tokens_per_word']:.3f}",
    "bytes/token": lambda one: f"{one['bytes_per_token']:.3f}",
    "whole words": lambda one: f"{one['whole_words']:.1%}",
    "unused ids": lambda one: f"{one['unused']:.1%}",
    "1B words": lambda one: short(one["tokens_of_1b_words"]),
    "ratio": lambda one: f"{one['ratio']:.3f}",
}


def add_to(commands: Parsers) -> None:
    parser = commands.add_parser("tokenizer", help=DOES, description="Look at tokenizers before one is chosen.")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    report: argparse.ArgumentParser = verbs.add_parser(
        "report",
        help=DOES,
        description=f"{DOES[0].upper()}{DOES[1:]}: tokens per word (a word is a run of what is not white space), bytes "
        "per token, the share of words that are one token each (with the space before, and without punctuation at the "
        "edges), the share of ids that the text never uses, the tokens of a corpus of 1,000,000,000 such words, and "
        "the number of tokens as a ratio to the first tokenizer's.",
        epilog="Example: ahkio tokenizer report models/llama --text fi-*.jsonl.zst --against models/poro other.json",
    )
    report.add_argument("tokenizer", metavar="TOKENIZER", help=TOKENIZER)
    what = "JSON lines (.jsonl, .json, .ndjson), .parquet, or else plain text; plain, .gz or .zst"
    report.add_argument("--text", nargs="+", required=True, metavar="FILE", help=what)
    report.add_argument("--against", nargs="+", default=[], metavar="TOKENIZER", help="others to set beside it")
    report.add_argument("--key", default="text", metavar="NAME", help="the field that holds the text (default: text)")
    report.add_argument("--json", action="store_true", help="print JSON, for programs")
    report.set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    if args.overrides:
        raise UserError(f"{args.overrides[0]!r} stands alone; files follow --text, and other tokenizers --against.")
    found = compared([args.tokenizer, *args.against], [source_of(file, args.key) for file in args.text])
    for one in found:
        one["ratio"] = one["tokens"] / found[0]["tokens"]
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(found, Console())
    return 0


def source_of(file: str, key: str) -> Source:
    """How to read a file, by its name; of plain text each block between blank lines is a document."""
    name = file.removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return JsonLines(path=file, text=key, id="", bad_lines=1.0)
    if name.endswith(".parquet"):
        return Parquet(path=file, text=key, id="", bad_lines=1.0)
    return TextFiles(path=file, split="blank lines", bad_lines=1.0)


def compared(addresses: list[str], sources: list[Source]) -> list[Facts]:
    """For each tokenizer its address, the facts of `fertility.measure`, and how many rows were left out for what."""
    from ahkio.tokens.fertility import measure  # numpy and the tokenizer's library, which only this needs

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        encoders = [open_tokenizer(address, Path(scratch, str(i))) for i, address in enumerate(addresses)]
        for address, encoder in zip(addresses, encoders, strict=True):
            left_out: Counter[str] = Counter()
            facts = measure(texts(sources, left_out), encoder)
            found.append({"tokenizer": address} | facts | {"left_out": dict(left_out)})
    return found


def texts(sources: list[Source], left_out: Counter[str]) -> Iterator[str]:
    for source in sources:
        tally = Tally()
        for document in source.read(tally):
            yield document.text
        left_out.update(tally.dropped)
        if tally.read == tally.dropped.total():
            raise UserError(
                f"{source.address} gives no text ({listed(tally.dropped) or 'it is empty'}); state its field with "
                "--key, or give another file."
            )


def listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} with {reason.replace('_', ' ')}" for reason, count in left_out.items())


def open_tokenizer(address: str, scratch: Path) -> "Encoder":
    """The tokenizer at `address`; that of a .gguf file is written to `scratch`."""
    from ahkio.model.imported import in_package
    from ahkio.tokens.tokenizer import Encoder

    path = in_package(address)[0] if address.startswith("package:") else Path(address)
    if path.suffix == ".gguf":
        from ahkio.model.gguf import import_tokenizer

        scratch.mkdir()
        import_tokenizer(path, scratch)
        path = scratch
    if not path.exists():
        raise UserError(f"There is no {path}; give {TOKENIZER}.")
    return Encoder.unmarked(path / "tokenizer.json" if path.is_dir() else path)


def show(found: list[Facts], console: Console) -> None:
    first = found[0]
    print(f"{first['documents']:,} documents, {first['words']:,} words, {first['bytes']:,} bytes")
    if first["left_out"]:
        print(f"rows left out: {listed(first['left_out'])}")
    for number, one in enumerate(found, 1):
        print(f"  {number}  {one['tokenizer']} ({one['vocab']:,} ids)")
    table = Table("", box=box.SIMPLE_HEAD)
    for head in COLUMNS:
        table.add_column(head, justify="right", no_wrap=True)
    for number, one in enumerate(found, 1):
        table.add_row(str(number), *(cell(one) for cell in COLUMNS.values()))
    console.print(table)
