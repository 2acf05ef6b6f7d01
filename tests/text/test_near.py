"""Edited copies are found as often as the arithmetic of MinHash says, the first stays, and nothing else goes."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from ahkio.core.errors import UserError
from ahkio.text import near
from ahkio.text.corpus import Writer
from ahkio.text.document import Document
from ahkio.text.near import MinHash, near_duplicates

pytest.importorskip("datatrove")

DATA = Path(__file__).parents[2] / "data"
PER_KIND = 60  # documents of each domain in each kind of copy


def texts(domain: str, least_words: int = 100) -> list[str]:
    with gzip.open(DATA / f"{domain}.jsonl.gz") as file:
        found = [orjson.loads(line)["text"] for line in file]
    return [text for text in found if len(text.split()) >= least_words]


def shard(path: Path, documents: list[str]) -> Path:
    with Writer(path.parent, path.name, 3) as writer:
        for number, text in enumerate(documents):
            writer.add(Document(text, f"{path.name}#{number}", str(number)))
    return path


def in_one_place(text: str, share: float, draw: random.Random) -> str:
    words = text.split()
    count = max(1, round(share * len(words)))
    first = draw.randrange(len(words) - count)
    return " ".join([*words[:first], *(f"muu{draw.random()}" for _ in range(count)), *words[first + count :]])


def all_over(text: str, share: float, draw: random.Random) -> str:
    return " ".join(f"muu{draw.random()}" if draw.random() < share else word for word in text.split())


def likeness(one: str, other: str) -> float:
    """The share of their runs of five words that two texts have in common, of all that either has."""
    from ahkio.text.minhash import words_of

    runs = [set(zip(*(words[i:] for i in range(5)), strict=False)) for words in map(words_of, (one, other))]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


EDITS: list[tuple[Callable[[str, float, random.Random], str], float]] = [
    (in_one_place, 0.05),
    (in_one_place, 0.10),
    (all_over, 0.01),
    (all_over, 0.50),
]


def test_edited_copies_are_found_as_often_as_promised_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(0)
    originals, copies = [], []
    for edit, share in EDITS:
        chosen = [text for domain in ("fi", "en", "code") for text in draw.sample(texts(domain), PER_KIND // 3)]
        originals += chosen
        copies += [edit(text, share, draw) for text in chosen]
    unique = list(dict.fromkeys(originals))
    parts = (unique, [], copies[::2], copies[1::2])
    shards = [shard(tmp_path / f"{i}.jsonl.zst", part) for i, part in enumerate(parts)]
    masks = near_duplicates(MinHash(), shards, tmp_path / "work", workers=1)
    assert [len(mask) for mask in masks] == [len(part) for part in parts]
    assert not masks[0].any()
    found = np.empty(len(copies), bool)
    found[::2], found[1::2] = masks[2], masks[3]
    chance = [1 - (1 - likeness(a, b) ** 8) ** 14 for a, b in zip(originals, copies, strict=True)]
    for kind, (edit, share) in enumerate(EDITS):
        of = slice(kind * PER_KIND, (kind + 1) * PER_KIND)
        assert abs(found[of].mean() - np.mean(chance[of])) < 0.08, (edit, share)
    assert found[:PER_KIND].mean() > 0.95
    assert not found[-PER_KIND:].any()


def test_of_a_cluster_the_first_stays_across_shards_whatever_the_number_of_workers(tmp_path: Path) -> None:
    draw, (one, other, *rest) = random.Random(0), texts("fi")[:40]
    parts = [rest[:20], [in_one_place(one, 0.1, draw), other], ["too short"] * 2, [other, *rest[20:], one, one]]
    shards = [shard(tmp_path / f"{i}.jsonl.zst", part) for i, part in enumerate(parts)]
    expected = [[False] * 20, [False] * 2, [False] * 2, [True, *[False] * 18, True, True]]
    for workers in (1, 2):
        masks = near_duplicates(MinHash(), shards, tmp_path / f"work{workers}", workers)
        assert [mask.tolist() for mask in masks] == expected


def test_shards_that_share_a_task_keep_their_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = texts("fi")[:12]
    shards = [shard(tmp_path / f"{i}.jsonl.zst", part) for i, part in enumerate((some[:3], some[2:5], some[4:], some))]
    alone = near_duplicates(MinHash(), shards, tmp_path / "alone", 1)
    monkeypatch.setattr(near, "TASKS", 2)
    together = near_duplicates(MinHash(), shards, tmp_path / "together", 1)
    assert [mask.tolist() for mask in alone] == [mask.tolist() for mask in together]
    assert [mask.sum() for mask in alone] == [0, 1, 1, 12]


def test_a_call_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    some = texts("fi")[:30]
    shards = [shard(tmp_path / f"{i}.jsonl.zst", part) for i, part in enumerate((some, some[::2], some[::3]))]
    before = near_duplicates(MinHash(), shards, tmp_path / "work", 1)
    (folder,) = (tmp_path / "work").iterdir()
    done = {path: path.stat().st_mtime_ns for path in (folder / "signatures").rglob("*.sig")}
    for undone in ("signatures/completions/00001", "pairs/completions/00003", "clusters/completions/00000"):
        (folder / "logs" / undone).unlink()
    for half in ("signatures/bucket_000/00001.minhash.sig", "pairs/00003_00.dups"):
        (folder / half).write_bytes(b"half")
    after = near_duplicates(MinHash(), shards, tmp_path / "work", 1)
    assert [mask.tolist() for mask in after] == [mask.tolist() for mask in before]
    again = {path.name for path, time in done.items() if path.stat().st_mtime_ns != time}
    assert again == {"00001.minhash.sig"}


@pytest.mark.parametrize("precision", [32, 64])
def test_signatures_are_datatroves_own_to_the_byte(tmp_path: Path, precision: int) -> None:
    from datatrove.data import Document as Passing
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    from ahkio.text.minhash import Signature, Spaces

    documents = [Passing(text, "") for domain in ("fi", "en", "code", "math") for text in texts(domain, 1)[::20]]
    config = MinhashConfig(hash_config=HashConfig(precision))
    Signature(str(tmp_path / "ours"), config).run(documents)
    MinhashDedupSignature(str(tmp_path / "theirs"), config, Spaces()).run(documents)
    files = sorted((tmp_path / "theirs").rglob("*.sig"))
    assert len(files) == 14
    for file in files:
        assert file.read_bytes() == (tmp_path / "ours" / file.relative_to(tmp_path / "theirs")).read_bytes()


def test_words_are_those_of_datatroves_plain_text() -> None:
    from datatrove.utils.text import simplify_text

    from ahkio.text.minhash import words_of

    odd = ["", "3,14 km²; ΣΑΣ 1.2.3 don't", "a\u0308iti ÄITI\u00a0x_y", "\u0301 ́x\x85y\x1cz", "हिन्दी में", "١٢٣,٤ ½"]
    for text in [*odd, *(text for domain in ("fi", "en", "code", "math") for text in texts(domain, 1)[::20])]:
        assert words_of(text) == simplify_text(text).split()


def test_what_cannot_be_read_or_meant_is_said_in_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = (shard(tmp_path / f"{name}.jsonl.zst", texts("fi")[:5]) for name in ("good", "bad"))
    bad.write_bytes(bad.read_bytes()[:-40])
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"bad\.jsonl\.zst can't be read"):
            near_duplicates(MinHash(), [good, bad], tmp_path / "work", workers)
    with pytest.raises(UserError, match="buckets"):
        MinHash(buckets=0)
    with pytest.raises(UserError, match="precision"):
        MinHash(precision=16)  # type: ignore[arg-type]
    assert near_duplicates(MinHash(), [], tmp_path / "work", 1) == []
    assert capfd.readouterr().err == ""
