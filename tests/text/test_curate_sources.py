"""Curation of what the web's datasets are made of: FineWeb2's and StarCoder's parquet, and archives of pages."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("datatrove")

from ahkio.core.errors import UserError
from ahkio.core.stage import build
from ahkio.text.corpus import read_shard
from ahkio.text.curate import Curate, Raw
from ahkio.text.executors import Local
from ahkio.text.languages import rules_of
from ahkio.text.rules import Rules
from ahkio.text.sources import Hub, Tally
from ahkio.text.warc import Warc

DATA = Path(__file__).parents[2] / "data"
COMMIT = "0123456789" * 4


def quiet(_: str) -> None:
    pass


def real(name: str) -> list[str]:
    with gzip.open(DATA / f"{name}.jsonl.gz") as file:
        return [row["text"] for row in map(json.loads, file)]


def fineweb2(number: int, text: bytes | None) -> dict[str, Any]:
    return {
        "text": text,
        "id": f"<urn:uuid:{number:08}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://sivu.fi/{number}",
        "date": "2024-03-01T00:00:00Z",
        "file_path": "s3://commoncrawl/x.warc.gz",
        "language": "fin",
        "language_score": 0.99 if number % 3 else None,
        "language_script": "Latn",
        "minhash_cluster_size": number,
        "top_langs": "{}",
    }


def starcoder(number: int, content: bytes | None) -> dict[str, Any]:
    return {
        "max_stars_repo_path": f"src/{number}.py",
        "max_stars_repo_name": "maija/koodi",
        "max_stars_count": number if number % 2 else None,
        "id": str(number),
        "content": content,
    }


def written(path: Path, rows: list[dict[str, Any]], column: str, group_rows: int) -> None:
    """As parquet whose text column says it is UTF-8, whether it is or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{key: value for key, value in row.items() if key != column} for row in rows])
    raw = pa.array([row[column] for row in rows], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(table.append_column(column, text), path, row_group_size=group_rows)


def hub(folder: Path, pattern: str, **settings: Any) -> Hub:
    return Hub("org/data", config="fin_Latn", revision=COMMIT, data_files=(pattern,), mirror=str(folder), **settings)


def test_parquet_of_fineweb2_and_starcoder_is_curated_whole(tmp_path: Path) -> None:
    finnish, code = ([text.encode() for text in real(name)[:30]] for name in ("fi", "code"))
    bad: list[bytes | None] = [None, b"\xff\xfe kaunis", b" "]
    for part in range(3):
        rows = [
            fineweb2(100 * part + i, text)
            for i, text in enumerate(finnish[10 * part : 10 * part + 10] + bad[part : part + 1])
        ]
        written(tmp_path / "data" / "fin_Latn" / f"{part:03}.parquet", rows, "text", 1 + 3 * part)
    huge = ("sana ja toinen\n" * (40 * 2**20 // 15)).encode()
    written(
        tmp_path / "stack" / "0.parquet",
        [starcoder(i, text) for i, text in enumerate([*code, huge, *bad])],
        "content",
        7,
    )
    web = hub(tmp_path, "data/fin_Latn/*.parquet", id="id", keep=("url",), license="ODC-By")
    stack = hub(tmp_path, "stack/*.parquet", text="content", keep=("max_stars_repo_name",), license="mixed")
    all_finnish = Rules(language="fi", scores=rules_of("fi").scores, max_characters=2_000_000)
    domains = (Raw("finnish", (web, stack), all_finnish), Raw("code", (stack,), "neutral"))
    made = build(Curate(domains=domains, near=None, executor=Local(1)), tmp_path / "store", quiet)

    lost = {name: domain["waterfall"] for name, domain in made.facts["domains"].items()}
    finnish_lost = {row["reason"]: row["documents"] for row in lost["finnish"]}
    assert finnish_lost["no_text"] == finnish_lost["invalid_utf8"] == finnish_lost["empty_text"] == 2
    assert finnish_lost["too_long"] == 1
    assert finnish_lost["other_language"] + finnish_lost.get("unsure_language", 0) == len(code)
    assert lost["finnish"][0]["documents"] == 33 + 34
    for rows in lost.values():
        assert rows[0]["documents"] == sum(row["documents"] for row in rows[1:])
        assert rows[0]["bytes"] == sum(row["bytes"] for row in rows[1:])
    assert lost["code"][-1]["documents"] == len(code) + 1  # the huge one goes through where nothing forbids it
    assert lost["code"][-1]["bytes"] > 40 * 2**20
    first = next(iter(read_shard(made.path / "finnish" / "00000.jsonl.zst")))
    assert (first.id, first.fields) == ("<urn:uuid:00000000>", {"url": "https://sivu.fi/0", "license": "ODC-By"})
    origin = made.facts["domains"]["finnish"]["origins"][0]
    assert {key: origin[key] for key in ("repo", "config", "column", "revision", "license")} == {
        "repo": "org/data",
        "config": "fin_Latn",
        "column": "text",
        "revision": COMMIT,
        "license": "ODC-By",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Archives


def archive(path: Path, pages: list[tuple[str, str, bytes]]) -> Warc:
    """Pages (kind of record, media type, content) as an archive."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "test"}))
        for number, (kind, media, content) in enumerate(pages):
            http = StatusAndHeaders("200 OK", [("Content-Type", media)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"https://sivu.fi/{number}",
                kind,
                payload=io.BytesIO(content),
                http_headers=http if kind == "response" else None,
                warc_content_type=media if kind == "conversion" else "",
                warc_headers_dict={"WARC-Record-ID": f"<urn:uuid:{number}>", "WARC-Date": "2024-03-01T00:00:00Z"},
            )
            writer.write_record(record)
    return Warc(str(path), group=((r"^https://([^/]+)/.*$", r"\1"),), license="unknown")


@pytest.mark.parametrize("name", ["a.warc.wet.gz", "a.warc.wet"])
def test_texts_of_an_archive_are_documents(tmp_path: Path, name: str) -> None:
    pages = [
        ("conversion", "text/plain", "Järvi ja metsä".encode()),
        ("conversion", "text/plain", b"\xff\xfe"),
        ("response", "text/html; charset=utf-8", b"<p>Moi</p>"),
        ("response", "text/plain", b"Pelkkaa tekstia"),
    ]
    tally = Tally()
    documents = list(archive(tmp_path / name, pages).read(tally))
    assert [(one.id, one.group, one.text) for one in documents] == [
        ("<urn:uuid:0>", "sivu.fi", "Järvi ja metsä"),
        ("<urn:uuid:3>", "sivu.fi", "Pelkkaa tekstia"),
    ]
    fields = {"url": "https://sivu.fi/0", "date": "2024-03-01T00:00:00Z", "license": "unknown"}
    assert documents[0].fields == fields
    assert (tally.read, dict(tally.dropped)) == (4, {"invalid_utf8": 1, "html": 1})


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wet").write_bytes(b"this is no archive\n")
    with pytest.raises(UserError, match=r"a\.wet is not a whole WARC file"):
        list(Warc(str(tmp_path / "a.wet")).read(Tally()))


def test_an_archive_cut_short_is_named(tmp_path: Path) -> None:
    archive(tmp_path / "a.wet.gz", [("conversion", "text/plain", b"Jarvi " * 5000)])
    (tmp_path / "a.wet.gz").write_bytes((tmp_path / "a.wet.gz").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.wet\.gz"):
        list(Warc(str(tmp_path / "a.wet.gz")).read(Tally()))
