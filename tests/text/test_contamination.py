"""Items of evaluation sets that stand in training are found, counted by task, and nothing else is."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ahkio.core.errors import UserError
from ahkio.text import contamination
from ahkio.text.contamination import EvaluationSet, TaskReport, contaminated, search
from ahkio.text.corpus import Writer
from ahkio.text.document import Document
from ahkio.text.sources import JsonLines, Parquet

DATA = Path(__file__).parents[2] / "data"
QUESTION = "Kuinka monta järveä on Suomessa, kun lasketaan kaikki yli viiden aarin kokoiset vedet mukaan?"


def rows(domain: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{domain}.jsonl.gz") as file:
        return [orjson.loads(line) for line in file]


def shard(path: Path, documents: list[str]) -> Path:
    with Writer(path.parent, path.name, 3) as writer:
        for number, text in enumerate(documents):
            writer.add(Document(text, f"{path.name}#{number}", str(number)))
    return path


def questions(path: Path, items: list[dict[str, Any]], *fields: str) -> EvaluationSet:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return EvaluationSet(path.stem, JsonLines(str(path)), fields)


def marks(folder: Path, one: EvaluationSet, *documents: str, words: int = 13) -> list[bool]:
    (found,) = contaminated([one], words, [shard(folder / "shard.jsonl.zst", list(documents))], 1)
    return [bool(task) for task in found]


def test_planted_items_are_found_and_the_rest_is_not(tmp_path: Path) -> None:
    pairs = [pair for pair in rows("pairs") if len(pair["fi"].split()) >= 15][:400]
    items = [{"question": pair["fi"], "choices": {"text": ["kyllä", "ei"]}} for pair in pairs]
    one = questions(tmp_path / "arc.jsonl", items, "question", "choices.text")
    texts = [row["text"] for domain in ("math", "code") for row in rows(domain)][:600]
    expected, planted = [""] * len(texts), range(0, len(texts), 10)
    for number in planted:
        lines = texts[number].split("\n")
        lines.insert(len(lines) // 2, f"{number}: {pairs[number // 2]['fi'].upper().replace(' ', '  ')}!")
        texts[number], expected[number] = "\n".join(lines), "arc"
    shards = [shard(tmp_path / f"{i}.jsonl.zst", texts[i::3]) for i in range(3)]
    for workers in (1, 2):
        found = search([one], 13, shards, workers)
        assert found.marks == [expected[i::3] for i in range(3)]
        assert found.tasks == {"arc": TaskReport(items=400, too_short=0, found=len(planted), documents=len(planted))}


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(tmp_path: Path) -> None:
    one = questions(tmp_path / "q.jsonl", [{"question": QUESTION}], "question")
    words = QUESTION.split()
    assert len(words) == 14
    assert marks(tmp_path, one, " ".join(["Niin", *words[:13], "sitten"]), " ".join(words[1:13])) == [True, False]
    assert marks(tmp_path, one, QUESTION.replace("järveä", "lampea")) == [False]
    assert marks(tmp_path, one, " ".join(words[1:13]), words=12) == [True]


def test_a_short_text_is_looked_for_whole_wherever_it_stands(tmp_path: Path) -> None:
    short = " ".join(QUESTION.split()[:8])
    one = questions(tmp_path / "q.jsonl", [{"question": short}, {"question": "Kuka hän on?"}], "question")
    texts = [f"Hän kysyi: {short} Ja sitten", " ".join(short.split()[:7]), "Kuka hän on?"]
    found = search([one], 13, [shard(tmp_path / "shard.jsonl.zst", texts)], 1)
    assert found.marks == [["q", "", ""]]
    assert found.tasks["q"] == TaskReport(items=2, too_short=1, found=1, documents=1)


def test_an_item_of_short_texts_is_looked_for_as_one(tmp_path: Path) -> None:
    items = [
        {"question": "Mikä on suurin?", "choices": [{"text": "Saimaa on"}, {"text": "Inari on"}, {"text": "Oulu"}]}
    ]
    one = questions(tmp_path / "q.jsonl", items, "question", "choices.text")
    assert marks(tmp_path, one, "Mikä on suurin? Saimaa on, Inari on, Oulu.", "Saimaa on Inari on Oulu") == [
        True,
        False,
    ]


def test_parquet_with_nested_columns_and_where(tmp_path: Path) -> None:
    items = [{"q": f"{QUESTION} {n}", "choices": {"text": [f"{n} {QUESTION[:60]}", "ei"]}, "lang": n} for n in "ab"]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "arc.parquet")
    source = Parquet(str(tmp_path / "arc.parquet"), where=("lang", ("a",)))
    one = EvaluationSet("arc", source, ("choices.text",))
    assert marks(tmp_path, one, items[0]["choices"]["text"][0], items[1]["choices"]["text"][0]) == [True, False]


def test_a_document_has_the_first_task_and_every_task_its_items(tmp_path: Path) -> None:
    sets = [questions(tmp_path / f"{name}.jsonl", [{"q": QUESTION}, {"q": f"{name} " * 9}], "q") for name in ("b", "a")]
    found = search(sets, 13, [shard(tmp_path / "shard.jsonl.zst", [QUESTION, "a " * 12, "muuta"])], 1)
    assert found.marks == [["b", "a", ""]]
    assert found.tasks == {"b": TaskReport(2, 0, 1, 1), "a": TaskReport(2, 0, 2, 1)}


def test_equal_hashes_of_other_words_are_no_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = questions(tmp_path / "q.jsonl", [{"question": QUESTION}], "question")
    monkeypatch.setattr(contamination, "codes_of", lambda words: np.zeros(len(words), np.uint64))
    assert marks(tmp_path, one, "jotain aivan muuta " * 9, QUESTION) == [False, True]


def test_without_anything_to_look_for_nothing_is_marked(tmp_path: Path) -> None:
    one = questions(tmp_path / "q.jsonl", [{"question": "Kuka?"}], "question")
    for sets in ([], [one]):
        assert contaminated(sets, 13, [shard(tmp_path / "shard.jsonl.zst", [QUESTION, "Kuka?"])], 1) == [["", ""]]
    assert contaminated([one], 13, [], 1) == []
    assert contaminated([one], 13, [shard(tmp_path / "none.jsonl.zst", [])], 1) == [[]]


def test_bad_sets_are_refused_in_a_sentence(tmp_path: Path) -> None:
    good = questions(tmp_path / "q.jsonl", [{"question": QUESTION}], "question")
    for one in (EvaluationSet("q", good.source, ("quest",)), questions(tmp_path / "none.jsonl", [], "quest")):
        with pytest.raises(UserError, match=r"no row of .* has text in 'quest'"):
            contaminated([one], 13, [], 1)
    with pytest.raises(UserError, match="one evaluation set for each task"):
        contaminated([good, good], 13, [], 1)
    with pytest.raises(UserError, match="task's name"):
        EvaluationSet("", good.source, ("question",))
    (tmp_path / "q.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match=r"q\.jsonl, line 1: invalid json"):
        contaminated([good], 13, [], 1)
