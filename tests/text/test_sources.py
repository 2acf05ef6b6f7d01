"""Every source reads the same documents from every format, and says in one sentence what is wrong with a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ahkio.core.errors import UserError
from ahkio.core.stage import identity
from ahkio.text.document import Document
from ahkio.text.sources import Hub, JsonLines, Parquet, Source, Tally, TextFiles

COMMIT = "0123456789" * 4
ROWS: list[dict[str, Any]] = [
    {"id": f"page/{i}#a", "text": f"Järvi {i}\nja metsä", "kind": "ab"[i % 2], "licence": "CC0" if i else None}
    for i in range(600)
]


def read(source: Source, tally: Tally | None = None) -> list[Document]:
    return list(source.read(Tally() if tally is None else tally))


def json_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` at `path`, in the format that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=250)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(json_lines(rows)))
    elif path.suffix == ".zst":
        half = len(rows) // 2  # two frames, as a file that was written in parts
        path.write_bytes(b"".join(zstandard.compress(json_lines(part)) for part in (rows[:half], rows[half:])))
    else:
        path.write_bytes(json_lines(rows))
    return path


def table(path: Path, **settings: Any) -> Source:
    return Parquet(str(path), **settings) if path.suffix == ".parquet" else JsonLines(str(path), **settings)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"group": (("#.*$", ""),), "keep": ("kind",), "license_field": "licence"}
    documents = read(table(written(tmp_path / name, ROWS), **settings, license="MIT", where=("kind", ("b",))))
    assert [d.id for d in documents] == [row["id"] for row in ROWS if row["kind"] == "b"]
    assert documents[0] == Document("Järvi 1\nja metsä", "page/1#a", "page/1", {"kind": "b", "license": "CC0"})


def test_a_row_without_its_own_licence_has_that_of_its_source(tmp_path: Path) -> None:
    first = read(table(written(tmp_path / "a.jsonl", ROWS), license="MIT", license_field="licence"))[0]
    assert first.fields == {"license": "MIT"}


def test_a_glob_reads_its_files_in_order_and_rows_without_id_are_numbered(tmp_path: Path) -> None:
    for part in (2, 1):
        written(tmp_path / f"part-{part}.jsonl", [{"text": f"osa {part}"}])
    assert [d.id for d in read(JsonLines(str(tmp_path / "part-*.jsonl"), id=""))] == [
        "part-1.jsonl#1",
        "part-2.jsonl#1",
    ]


def test_plain_text_gives_a_document_a_file_or_a_block(tmp_path: Path) -> None:
    (tmp_path / "runo").mkdir()
    (tmp_path / "runo" / "a.txt").write_text("Mieleni minun tekevi\n\n\naivoni ajattelevi\nlähteäni")
    files, blocks = (TextFiles(str(tmp_path / "**" / "*.txt"), split=split) for split in ("file", "blank lines"))
    assert [d.id for d in read(files)] == ["runo/a.txt"]
    assert [(d.id, d.text) for d in read(blocks)] == [
        ("runo/a.txt#1", "Mieleni minun tekevi\n"),
        ("runo/a.txt#2", "aivoni ajattelevi\nlähteäni"),
    ]


def test_a_source_is_known_by_the_content_of_its_files(tmp_path: Path) -> None:
    source = JsonLines(str(written(tmp_path / "a.jsonl", ROWS)))
    before = identity(source)
    written(tmp_path / "a.jsonl", ROWS[:-1])
    assert identity(source) != before


# ---------------------------------------------------------------------------------------------------------------------
# The hub, by a mirror of a repository's files

CARD = """---
configs:
- config_name: fin_Latn
  data_files:
  - {split: train, path: data/fin_Latn/train/*}
  - split: test
    path: [data/fin_Latn/test/*.jsonl.gz]
---
# A dataset
"""


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    written(tmp_path / "data/fin_Latn/train/000.parquet", ROWS[:300])
    written(tmp_path / "data/fin_Latn/train/001.parquet", ROWS[300:])
    written(tmp_path / "data/fin_Latn/test/000.jsonl.gz", ROWS[:7])
    (tmp_path / "README.md").write_text(CARD)
    return str(tmp_path)


@pytest.mark.parametrize(("split", "count"), [("train", 600), ("test", 7)])
def test_a_hub_dataset_finds_its_files_by_its_card(mirror: str, split: str, count: int) -> None:
    hub = Hub("org/name", config="fin_Latn", split=split, revision=COMMIT, mirror=mirror)
    assert len(read(hub)) == count
    assert hub.origin()["revision"] == COMMIT


def test_a_hub_dataset_reads_the_files_it_is_told(mirror: str) -> None:
    hub = Hub("org/name", revision=COMMIT, data_files=("data/*/train/001.parquet",), mirror=mirror)
    assert [d.id for d in read(hub)] == [row["id"] for row in ROWS[300:]]


def test_a_mirror_does_not_change_what_a_hub_dataset_is() -> None:
    assert identity(Hub("org/name", revision=COMMIT, mirror="here")) == identity(Hub("org/name", revision=COMMIT))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": "fin_Latn"}, "pins nothing"),
        ({"config": "fin_Latn", "revision": "main"}, "pins nothing"),
        ({"revision": COMMIT}, "name them in data_files"),
        ({"revision": COMMIT, "data_files": ("*.arrow",)}, "no file of"),
        ({"revision": COMMIT, "data_files": ("README.md",)}, "neither parquet nor JSON lines"),
    ],
)
def test_a_hub_dataset_that_cannot_be_read_says_why(mirror: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(Hub("org/name", **settings, mirror=mirror))


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

BROKEN = {
    b'{"id": "x", "text": "cut o': "invalid_json",
    b'{"id": "x", "text": "\xff"}': "invalid_utf8",
    b"[1, 2]": "not_an_object",
    b'{"id": "x"}': "no_text",
    b'{"id": "x", "text": null}': "no_text",
    b'{"id": "x", "text": 5}': "text_not_a_string",
    b'{"text": "a text"}': "no_id",
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.items())
def test_a_broken_line_is_skipped_and_counted_by_its_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(ROWS[:3]) + line + b"\n\n" + json_lines(ROWS[3:]))
    tally = Tally()
    assert len(read(JsonLines(str(path)), tally)) == len(ROWS)
    assert (tally.read, dict(tally.dropped)) == (len(ROWS) + 1, {reason: 1})


def test_too_many_broken_lines_are_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(ROWS[:20]) + b"oops\n" * 11 + json_lines(ROWS))
    with pytest.raises(UserError, match=r"a\.jsonl, line 31: invalid json; 11 of the first 31 lines"):
        read(JsonLines(str(path)))
    assert len(read(JsonLines(str(path), bad_lines=0.5))) == len(ROWS) + 20
    with pytest.raises(UserError, match="line 21"):
        read(JsonLines(str(path), bad_lines=0.0))


def test_empty_texts_are_counted_and_never_refused(tmp_path: Path) -> None:
    tally = Tally()
    read(JsonLines(str(written(tmp_path / "a.jsonl", [{"id": "x", "text": " \n"}] * 100))), tally)
    assert tally.dropped == {"empty_text": 100}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "garbled", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = written(tmp_path / name, ROWS)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {"cut": whole[:-20], "garbled": whole[:middle] + b"\0" * 40 + whole[middle + 40 :], "empty": b""}[damage]
    path.write_bytes(damaged)
    if damage == "empty" and path.suffix != ".parquet":
        assert read(table(path)) == []  # nothing is broken: Corpus refuses a source without documents
    elif damage == "garbled" and path.suffix == ".parquet":
        with pytest.raises(UserError, match=r"a\.parquet"):
            read(table(path, bad_lines=0.0))
    else:
        with pytest.raises(UserError, match=name):
            read(table(path))


def test_invalid_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    texts = pa.array([b"hyv\xc3\xa4", b"huono \xff", b"hyv\xc3\xa4"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    tally = Tally()
    assert [d.id for d in read(Parquet(str(tmp_path / "a.parquet")), tally)] == ["a", "c"]
    assert tally.dropped == {"invalid_utf8": 1}


def test_a_missing_column_of_parquet_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", ROWS)
    with pytest.raises(UserError, match=r"a\.parquet has no column 'content'; its columns are: id, text"):
        read(Parquet(str(path), text="content"))


@pytest.mark.parametrize("path", ["none.jsonl", "none-*.jsonl"])
def test_files_that_are_not_there_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="No file matches"):
        read(JsonLines(str(tmp_path / path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": (("(", ""),)}, "no valid rule"),
        ({"group": (("a", r"\1"),)}, "no valid rule"),
        ({"keep": ("id",)}, "keep"),
    ],
)
def test_settings_are_checked_at_the_door(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        JsonLines("a.jsonl", **settings)
