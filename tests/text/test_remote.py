"""Text from the hub and from URLs: the same documents as from the files, whatever the server does, or one sentence."""

import gzip
import json
import os
import time
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import files_below, serving

from ahkio.core.errors import UserError
from ahkio.core.stage import build, identity
from ahkio.text import hub as hub_module
from ahkio.text import remote
from ahkio.text.corpus import Corpus, Domain
from ahkio.text.formats import Retries
from ahkio.text.sources import Hub, JsonLines, Parquet, Tally, TextFiles

COMMIT = "0123456789" * 4
ROWS = [{"id": f"page/{i}", "text": f"Järvi {i} " + "metsä ja " * (i % 50), "kind": "ab"[i % 2]} for i in range(600)]
QUICK = Retries(tries=4, first=0.01, longest=0.1)
CARD = "---\nconfigs:\n- {config_name: fin, data_files: [{split: train, path: data/fin/*}]}\n---\n"


def read(source):
    return [document.id for document in source.read(Tally())]


IDS = [row["id"] for row in ROWS]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A repository of two parquet files and one of JSON lines; it is also the hub."""
    folder = tmp_path / "repository" / "data" / "fin"
    folder.mkdir(parents=True)
    for number, rows in enumerate((ROWS[:250], ROWS[250:400])):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number:03}.parquet", row_group_size=70)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS[400:])
    (folder / "002.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "repository" / "README.md").write_text(CARD)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 2000)  # so that a file is many parts
    with serving(files_below(tmp_path / "repository")) as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found
    remote.found.cache_clear()
    remote._known.clear()
    hub_module.tree.cache_clear()
    hub_module.entry.cache_clear()


HUB = Hub("org/name", config="fin", revision=COMMIT, retries=QUICK)


def test_the_hub_gives_what_a_mirror_of_it_gives(server, tmp_path):
    mirrored = replace(HUB, mirror=str(tmp_path / "repository"))
    assert read(HUB) == read(mirrored) == IDS
    assert HUB.files() == mirrored.files() == [f"data/fin/{n}" for n in ("000.parquet", "001.parquet", "002.jsonl.gz")]
    assert HUB.origin() == mirrored.origin() | {"read_from": "hub"}


FAULTS = {
    "busy twice, then well": [(429, 0), 429],
    "out of order, then well": [503, 500],
    "breaks off, twice": ["cut", None, "cut"],
    "all of them": ["cut", (429, 0), 502, None, 504, "cut"],
}


@pytest.mark.parametrize("where", ["/tree/", "paths-info", "/resolve/", "/cdn/"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_server_that_fails_for_a_while_costs_nothing_but_time(server, faults, where):
    server.faults[where] = list(faults) if "always" not in faults else faults
    assert read(HUB) == IDS


def test_what_has_been_read_is_not_read_again_when_a_connection_breaks(server):
    read(HUB)
    unbroken = server.bytes_sent("/cdn/")
    server.asked.clear()
    server.faults["/cdn/"] = [None, None, None, "cut"]
    assert read(HUB) == IDS
    assert unbroken < server.bytes_sent("/cdn/") <= unbroken + remote.BLOCK_BYTES


@pytest.mark.parametrize("fault", [429, (429, 3600), 503, "cut"])
@pytest.mark.parametrize("where", ["/tree/", "/cdn/data/fin/001"])
def test_a_server_that_goes_on_failing_is_told_of_in_one_sentence_and_soon(server, where, fault):
    server.faults[where] = [("always", fault)]
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"org/name.* can't be read \((the server answers with status|.*)\); check"
    ) as raised:
        read(HUB)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 5


def test_a_wait_is_what_the_server_asks_for_within_bounds():
    error = ConnectionError()
    assert [remote.pause(error, tried, Retries()) for tried in (1, 2, 3, 20)] == [1, 2, 4, 120]
    assert remote.asked_for({"Retry-After": "7"}) == 7
    assert remote.asked_for({"RateLimit": '"resolvers";r=0;t=55'}) == 55
    assert remote.asked_for({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == remote.asked_for({}) == 0


@pytest.mark.parametrize("change", ["same size", "another size"])
@pytest.mark.parametrize("name", ["000.parquet", "002.jsonl.gz"])
def test_a_file_that_is_not_the_commits_is_refused(server, name, change):
    content = server.files[f"data/fin/{name}"]
    server.sent[f"data/fin/{name}"] = content[:-1] + b"x" if change == "same size" else content + b"x"
    with pytest.raises(UserError, match=rf"{name} is not the file of commit {COMMIT}: .* pin another commit"):
        read(HUB)


def test_a_file_of_the_commit_that_disappears_is_named(server):
    hub = replace(HUB, data_files=("data/fin/*.parquet",))
    assert len(hub.files()) == 2
    server.faults["/resolve/"] = [("always", 404)]
    with pytest.raises(UserError, match=r"data/fin/000\.parquet can't be read \(the server answers with status 404\)"):
        read(hub)


def test_a_mirror_of_another_commit_is_refused(server, tmp_path):
    note = tmp_path / "repository" / ".cache" / "huggingface" / "download" / "data" / "fin" / "000.parquet.metadata"
    note.parent.mkdir(parents=True)
    mirrored = replace(HUB, mirror=str(tmp_path / "repository"))
    note.write_text(f"{COMMIT}\netag\n0.0\n")
    assert read(mirrored) == IDS
    note.write_text(f"{'f' * 40}\netag\n0.0\n")
    with pytest.raises(UserError, match=r"000\.parquet is of commit f{40}, not 0123456789.*: hf download org/name"):
        read(mirrored)


def test_a_build_that_the_network_stops_keeps_what_is_read(server, tmp_path, monkeypatch):
    corpus = Corpus(domains=(Domain("fi", (HUB,), held_out=0.1),))
    whole = build(corpus, tmp_path / "whole", lambda _: None)
    monkeypatch.setattr("ahkio.text.parts.PART_BYTES", 1)
    server.faults["/cdn/data/fin/002"] = [("always", 503)]
    with pytest.raises(UserError, match=r"002\.jsonl\.gz can't be read"):
        build(corpus, tmp_path / "store", lambda _: None)
    assert corpus.progress(tmp_path / "store" / f"{corpus.name}.draft") == "2 of 3 parts read"
    server.faults.clear()
    server.asked.clear()
    made = build(corpus, tmp_path / "store", lambda _: None)
    assert {name for name, _ in server.asked if "/cdn/" in name} == {"/cdn/data/fin/002.jsonl.gz"}
    assert made.manifest["files"] == whole.manifest["files"]


def test_a_parquet_file_is_fetched_as_far_as_it_is_read(server, monkeypatch):
    rows = [{"id": str(i), "text": os.urandom(1 << 13).hex()} for i in range(1024)]  # 16 MB in four row groups
    file = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=256)
    server.files["data/fin/003.parquet"] = file.getvalue().to_pybytes()
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(remote, "BLOCKS", 32)  # more than a row group, as blocks of 8 MB are
    documents = replace(HUB, data_files=("data/fin/003.parquet",)).read(Tally())
    fetched = [next(documents) and server.bytes_sent("/cdn/") for _ in rows]
    assert fetched[0] < 8_500_000
    assert 16_000_000 < fetched[1023] < 18_000_000


# ---------------------------------------------------------------------------------------------------------------------
# By URL


def by_url(server, **settings):
    settings = {"retries": QUICK} | settings
    return (
        Parquet(f"{server.url}/plain/data/fin/000.parquet", **settings),
        JsonLines(f"{server.url}/plain/data/fin/002.jsonl.gz?download=true", **settings),
    )


def test_urls_give_what_the_files_give(server):
    parquet, lines = by_url(server)
    assert (read(parquet), read(lines)) == (IDS[:250], IDS[400:])


def test_a_file_server_that_fails_for_a_while_costs_nothing_but_time(server):
    server.faults["000.parquet"] = [503, 503, 503, 503, (429, 0), (429, 0), "cut", None, "cut", 500]
    assert read(by_url(server)[0]) == IDS[:250]


def test_a_file_server_that_goes_on_failing_is_told_of_in_one_sentence(server):
    parquet = by_url(server)[0]
    assert parquet.files()
    server.faults["000.parquet"] = [("always", (429, 3600))]
    with pytest.raises(UserError, match=r"000\.parquet can't be read \(the server answers with status 429\)"):
        read(parquet)


def test_a_file_behind_a_url_is_known_by_what_its_server_tells_and_refused_where_that_changes(server):
    parquet = by_url(server)[0]
    before = identity(parquet)
    name = "data/fin/000.parquet"
    server.files[name] = server.files[name][:-1] + b"x"
    with pytest.raises(UserError, match=r"000\.parquet has changed while it was read; build again"):
        read(parquet)
    remote.found.cache_clear()
    remote._known.clear()
    assert identity(parquet) != before


def test_globs_find_their_files_on_other_systems(server):
    system = fsspec.filesystem("memory")
    for name, content in server.files.items():
        system.pipe(f"/corpus/{name}", content)
    system.pipe("/corpus/texts/a.txt", b"Mieleni minun tekevi")
    assert read(Parquet("memory://corpus/**/*.parquet")) == IDS[:400]
    assert read(JsonLines("memory://corpus/data/*/*.jsonl.gz")) == IDS[400:]
    assert read(TextFiles("memory://corpus/**/*.txt")) == ["texts/a.txt"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/a.parquet", "Protocol not known"),
        ("memory://none/*.parquet", "No file matches"),
        ("memory://none/a.parquet", "There is no memory://none/a.parquet"),
        ("http://127.0.0.1:9/a.parquet", "can't be read|There is no"),
    ],
)
def test_urls_that_cannot_be_read_say_why(url, message):
    with pytest.raises(UserError, match=message):
        read(Parquet(url, retries=QUICK))
