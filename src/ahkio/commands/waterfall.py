"""The waterfall of a curation: what was read, what was dropped and why, and what was kept."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

WIDTH = 10  # characters of a whole bar


def waterfalls(facts: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each domain of a Curate's facts."""
    for name, domain in facts["domains"].items():
        yield drawn(name, domain["waterfall"])


def drawn(title: str, rows: list[Mapping[str, Any]]) -> Table:
    """The bar of a row is what is left after it, of the documents that were read."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("", "reason", "documents", "share", "bytes", "left"):
        table.add_column(head, justify="right" if head in ("documents", "share", "bytes") else "left", no_wrap=True)
    read, left, step = rows[0]["documents"], rows[0]["documents"], ""
    for row in rows:
        ends = row["step"] in ("read", "kept")
        left -= 0 if ends else row["documents"]
        table.add_row(
            "" if row["step"] == step else row["step"].replace("_", " "),
            row["reason"].removeprefix("gopher_").replace("_", " "),
            f"{row['documents'] if ends else -row['documents']:,}",
            f"{row['documents'] / max(1, read):.1%}",
            f"{row['bytes'] if ends else -row['bytes']:,}",
            "█" * round(WIDTH * left / max(1, read)),
            style="bold" if ends else "",
        )
        step = row["step"]
    return table
