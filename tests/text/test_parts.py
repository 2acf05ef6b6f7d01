"""A corpus is the same bytes however many processes, parts and attempts made it."""

import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ahkio.core import artifact
from ahkio.core.artifact import draft_of, share
from ahkio.core.errors import UserError
from ahkio.core.stage import build, build_part
from ahkio.text import corpus as corpus_module
from ahkio.text import parts as parts_module
from ahkio.text.corpus import Corpus, Domain, heldout_shard, read_shard, train_shards
from ahkio.text.sources import Hub, JsonLines, Tally

DATA = Path(__file__).parents[2] / "data"
COMMIT = "0123456789" * 4
PAGES = 120


def quiet(_):
    pass


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A part for each file, and a frame for a few documents, also in the processes that tests start."""
    monkeypatch.setattr(parts_module, "PART_BYTES", 1)
    monkeypatch.setattr(parts_module, "FRAME_BYTES", 2000)


def prose(key, count=40):
    return " ".join(f"{key}w{i}" for i in range(count))


def some(folder, name, files=4, broken=()):
    """A source of several files with documents that repeat, and broken lines after so many rows of the whole."""
    row = 0
    for number in range(files):
        with open(folder / f"{name}-{number}.jsonl", "w") as file:
            for _ in range(PAGES // files):
                if row in broken:
                    file.write("oops\n")
                text = prose("again") if row % 30 == 7 else f"{prose(f'{name}{row}x')}\n{prose(f'line{row % 50}x', 20)}"
                file.write(json.dumps({"id": f"{name}/{row}", "text": text, "licence": "AB"[row % 2]}) + "\n")
                row += 1
    return JsonLines(str(folder / f"{name}-*.jsonl"), group=(("^../", ""),), license_field="licence")


@pytest.fixture
def corpus(tmp_path):
    fi = Domain("fi", (some(tmp_path, "fi", broken=(3, 77)), some(tmp_path, "sv", files=2)), 0.2)
    return Corpus(domains=(fi, Domain("en", (some(tmp_path, "en", files=3),), 0.05)), shard_bytes=9000, workers=1)


def same(one, other):
    return one.manifest["files"] == other.manifest["files"] and one.facts == other.facts


def test_neither_processes_nor_the_size_of_parts_change_a_corpus(corpus, tmp_path, monkeypatch):
    one = build(corpus, tmp_path / "one", quiet)
    assert len(train_shards(one.path, "fi")) > 3
    assert same(one, build(replace(corpus, workers=2), tmp_path / "two", quiet))
    monkeypatch.setattr(parts_module, "PART_BYTES", 1 << 30)
    monkeypatch.setattr(parts_module, "FRAME_BYTES", 1 << 30)
    assert same(one, build(corpus, tmp_path / "whole", quiet))


def test_only_what_belongs_to_a_corpus_is_published(corpus, tmp_path):
    made = build(corpus, tmp_path, quiet)
    shards = [
        path for name in ("fi", "en") for path in (*train_shards(made.path, name), heldout_shard(made.path, name))
    ]
    assert set(made.manifest["files"]) == {str(path.relative_to(made.path)) for path in shards}


def dying_at(monkeypatch, module, name, call):
    """Let the function `name` of a module be interrupted at this call; return the list of what it is called with."""
    work, seen = getattr(module, name), []

    def dying(job):
        seen.append(job)
        if len(seen) == call:
            raise KeyboardInterrupt
        return work(job)

    monkeypatch.setattr(module, name, dying)
    return seen


@pytest.mark.parametrize("call", [1, 4, 9])
def test_a_reading_that_was_stopped_goes_on_after_the_parts_that_are_done(corpus, tmp_path, monkeypatch, call):
    whole = build(corpus, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        dying_at(patch, parts_module, "read_part", call)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, tmp_path / "store", quiet)
    assert corpus.progress(draft_of(tmp_path / "store" / corpus.name)) == f"{call - 1} of 9 parts read"
    seen = dying_at(monkeypatch, parts_module, "read_part", 100)
    assert same(whole, build(corpus, tmp_path / "store", quiet))
    assert len(seen) == 9 - (call - 1)


def test_a_writing_that_was_stopped_goes_on_after_the_shards_that_are_done(corpus, tmp_path, monkeypatch):
    whole = build(corpus, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        dying_at(patch, corpus_module, "write_shard", 3)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, tmp_path / "store", quiet)
    assert corpus.progress(draft_of(tmp_path / "store" / corpus.name)) == "9 of 9 parts read, 2 shards written"
    seen = dying_at(monkeypatch, corpus_module, "write_shard", 100)
    assert same(whole, build(corpus, tmp_path / "store", quiet))
    assert len(seen) == sum(len(train_shards(whole.path, name)) for name in ("fi", "en")) - 2


def test_a_build_that_was_stopped_while_its_files_are_summed_only_sums_again(corpus, tmp_path, monkeypatch):
    whole = build(corpus, tmp_path / "whole", quiet)
    with monkeypatch.context() as patch:
        dying_at(patch, artifact, "sha256", 2)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, tmp_path / "store", quiet)
    read = dying_at(monkeypatch, parts_module, "read_part", 99)
    written = dying_at(monkeypatch, corpus_module, "write_shard", 99)
    assert same(whole, build(corpus, tmp_path / "store", quiet))
    assert (read, written) == ([], [])


def test_parts_in_any_order_and_number_make_the_same_corpus(corpus, tmp_path, monkeypatch):
    whole = build(corpus, tmp_path / "whole", quiet)
    for part in (2, 0, 1, 2):
        build_part(corpus, tmp_path / "store", part, 3)
    seen = dying_at(monkeypatch, parts_module, "read_part", 100)
    assert same(whole, build(corpus, tmp_path / "store", quiet))
    assert seen == []
    build_part(corpus, tmp_path / "store", 0, 3)  # nothing is left to do


def test_a_mirror_that_is_mended_between_attempts_is_read_anew(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    some(folder, "fi")
    hub = Hub("org/name", data_files=("fi-*.jsonl",), revision=COMMIT, mirror=str(folder))
    corpus = Corpus(domains=(Domain("fi", (hub,), 0.2),), shard_bytes=9000, workers=1)
    with monkeypatch.context() as patch:
        dying_at(patch, corpus_module, "write_shard", 3)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, tmp_path / "store", quiet)
    file = folder / "fi-0.jsonl"
    file.write_text(file.read_text().replace("w39", "W39"))
    made = build(corpus, tmp_path / "store", quiet)
    assert same(made, build(corpus, tmp_path / "whole", quiet))
    assert any("W39" in document.text for shard in train_shards(made.path, "fi") for document in read_shard(shard))


def test_a_file_that_changes_while_it_is_read_is_refused(corpus, tmp_path, monkeypatch):
    file, read = tmp_path / "fi-2.jsonl", JsonLines.read_file

    def touched(source, name):
        yield from read(source, name)
        if name == str(file):
            file.write_text(file.read_text() + " \n")

    monkeypatch.setattr(JsonLines, "read_file", touched)
    with pytest.raises(UserError, match=r"fi-2\.jsonl has changed while it was read; build again"):
        build(corpus, tmp_path, quiet)


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_lines_are_refused_at_the_same_place_as_without_parts(tmp_path, workers):
    source = some(tmp_path, "fi", broken=tuple(range(20, 35)))
    with pytest.raises(UserError) as expected:
        list(source.read(Tally()))
    with pytest.raises(UserError) as told:
        build(Corpus(domains=(Domain("fi", (source,)),), workers=workers), tmp_path, quiet)
    assert str(told.value) == str(expected.value)


def test_a_source_that_a_recipe_defines_is_read_too(corpus, tmp_path):
    @dataclass(frozen=True)
    class Own(JsonLines):
        """Of a class that no other process can import."""

    (sami, _), english = corpus.domains[0].sources, corpus.domains[1].sources
    own = Corpus(domains=(Domain("fi", (Own(sami.path), *english), 0.2),), shard_bytes=9000, workers=2)
    made = build(own, tmp_path / "two", quiet)
    assert same(made, build(replace(own, workers=1), tmp_path / "one", quiet))


def test_parts_of_two_numbers_or_beside_the_whole_are_refused(corpus, tmp_path):
    path = tmp_path / corpus.name
    with share(path, 1, 3):
        with share(path, 2, 3):
            pass
        for wrong in ((1, 3), (0, 2)):
            with pytest.raises(UserError, match="is being made by another process"):
                build_part(corpus, tmp_path, *wrong)
        with pytest.raises(UserError, match="is being made by another process"):
            build(corpus, tmp_path, quiet)
    build_part(corpus, tmp_path, 0, 2)
    build(corpus, tmp_path, quiet)
    assert [lock.name for lock in tmp_path.glob(".*.lock")] == [f".{corpus.name}.lock"]


RECIPE = """
from ahkio.text import parts
from ahkio.text.corpus import Corpus, Domain
from ahkio.text.sources import JsonLines

parts.PART_BYTES = 1
CORPUS = Corpus(domains=(Domain("text", (JsonLines({data!r}, group=(("#.*$", ""),), license_field="license"),), 0.05),))
"""


def test_killed_processes_leave_what_the_same_command_goes_on_from(tmp_path):
    """Over real text, in processes of the command line: parts, one of them killed, and then the whole."""
    recipe, environment = tmp_path / "small.py", os.environ | {"AHKIO_RUNS": str(tmp_path / "runs")}
    for name in ("fi", "en", "math"):
        with gzip.open(DATA / f"{name}.jsonl.gz") as lines:
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(islice(lines, 60)))
    recipe.write_text(RECIPE.format(data=str(tmp_path / "*.jsonl")))
    command = [sys.executable, "-m", "ahkio", "build", str(recipe)]

    def run(*more):
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)

    killed = subprocess.Popen([*command, "--part", "0/2"], env=environment)
    folder = tmp_path / "runs" / "artifacts"
    while killed.poll() is None and not list(folder.glob("*.draft/work/part-*.npz")):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert [run("--part", part).returncode for part in ("1/2", "0/2")] == [0, 0]
    assert not (tmp_path / "runs" / "small").exists()
    assert "--part 2/2 is no part" in run("--part", "2/2").stderr
    done = run("--json")
    assert done.returncode == 0, done.stderr
    whole = run("--json", "--runs", str(tmp_path / "whole"))
    one, other = (json.loads(each.stdout)["CORPUS"]["path"] for each in (done, whole))
    manifests = [json.loads((Path(path) / "manifest.json").read_text()) for path in (one, other)]
    assert manifests[0]["files"] == manifests[1]["files"]
    assert manifests[0]["facts"] == manifests[1]["facts"]


# ---------------------------------------------------------------------------------------------------------------------
# The schemas of the card's data sets

FINEWEB2 = {name: pa.string() for name in ("text", "id", "dump", "url", "date", "file_path", "language")} | {
    "language_score": pa.float64(),
    "language_script": pa.string(),
    "minhash_cluster_size": pa.int64(),
    "top_langs": pa.string(),
}
STARCODER = {
    "max_stars_repo_path": pa.string(),
    "max_stars_repo_name": pa.string(),
    "max_stars_count": pa.int64(),
    "id": pa.string(),
    "content": pa.string(),
}
COMMITS = {"content": pa.string(), "commit": pa.string()}  # other columns than code has, as the data set's card warns
CARD = "---\nconfigs:\n- config_name: fin_Latn\n  data_files:\n  - {split: train, path: data/fin_Latn/train/*}\n---\n"


def shard(path, schema, column, texts, **columns):
    """A parquet file of `schema` with `texts` in a column, some null or invalid, in odd row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: pa.nulls(len(texts), kind) for name, kind in schema.items()}
    values[column] = pa.array(texts, pa.binary()).view(pa.string())
    values |= {name: pa.array(column) for name, column in columns.items()}
    pq.write_table(pa.table(values, schema=pa.schema(schema)), path, row_group_size=7)


def texts_of(key, count):
    texts = [prose(f"{key}{i}").encode() for i in range(count)]
    return [*texts[:5], None, b"huono \xff teksti", b" \n", *texts[5:]]


def test_files_of_the_cards_data_sets_are_read_as_they_are(tmp_path):
    web, code = tmp_path / "fineweb-2", tmp_path / "starcoderdata"
    for number in range(3):
        texts = texts_of(f"sivu{number}x", 20)
        shard(
            web / "data" / "fin_Latn" / "train" / f"{number:03}_00000.parquet",
            *(FINEWEB2, "text", texts),
            url=[f"https://e.fi/{number}/{i}" for i in range(len(texts))],
        )
    (web / "README.md").write_text(CARD)
    for language in ("python", "finnish"):
        texts = texts_of(language, 20)
        shard(
            code / language / "train-00000-of-00001.parquet", STARCODER, "content", texts, id=list(map(str, range(23)))
        )
    shard(code / "git-commits-cleaned" / "train-00000-of-00001.parquet", COMMITS, "content", texts_of("commit", 20))
    pages = Hub(
        "HuggingFaceFW/fineweb-2", config="fin_Latn", id="url", revision=COMMIT, mirror=str(web), license="odc-by"
    )
    files = Hub(
        "bigcode/starcoderdata",
        data_files=("*/*.parquet",),
        text="content",
        id="",
        revision=COMMIT,
        mirror=str(code),
        license="other",
    )
    domains = (Domain("finnish", (pages,), 0.1), Domain("code", (files,), 0.1))
    made = build(Corpus(domains=domains, workers=1), tmp_path / "store", quiet)
    for name, repo, config, column, terms in (
        ("finnish", "HuggingFaceFW/fineweb-2", "fin_Latn", "text", "odc-by"),
        ("code", "bigcode/starcoderdata", "default", "content", "other"),
    ):
        facts = made.facts["domains"][name]
        assert facts["dropped"] == {"empty_text": 3, "invalid_utf8": 3, "no_text": 3}
        assert facts["read"] == 69 == facts["train"]["documents"] + facts["heldout"]["documents"] + 9
        assert facts["licenses"] == {terms: 60}
        assert facts["origins"] == [
            {
                "source": f"{repo} ({config}, train)",
                "repo": repo,
                "config": config,
                "column": column,
                "revision": COMMIT,
                "read_from": "mirror",
                "license": terms,
                "files": 3,
            }
        ]
    documents = [document for one in train_shards(made.path, "code") for document in read_shard(one)]
    assert {document.id.partition("#")[0] for document in documents} == {
        f"{folder}/train-00000-of-00001.parquet" for folder in ("python", "finnish", "git-commits-cleaned")
    }
