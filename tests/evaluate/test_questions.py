from dataclasses import replace

import pytest
from small_world import SmallCorpus, documents, quiet

from ahkio.core.errors import UserError
from ahkio.core.stage import build
from ahkio.evaluate.questions import Questions, read_jsonl

STAGE = Questions(corpus=SmallCorpus(), items=10, shots=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build(STAGE, tmp_path_factory.mktemp("store"), quiet)


def rows(made, name):
    return read_jsonl(made.path / f"{name}.jsonl")


def test_the_right_translation_is_among_four_different_ones_at_its_stated_place(made):
    truth = {row["en"]: row["fi"] for row in rows(made, "translate")}
    for row in rows(made, "translation_choice"):
        assert row["choices"][row["answer"]] == truth[row["source"]]
        assert len(set(row["choices"])) == 4


def test_the_right_continuation_is_what_follows_in_the_document(made):
    texts = {f"finnish/{n}": " ".join(row["text"].split()) for n, row in enumerate(documents(12))}
    for row in rows(made, "continuation_choice"):
        assert f"{row['opening']} {row['choices'][row['answer']]}" in texts[row["id"]]
        wrong = [choice for place, choice in enumerate(row["choices"]) if place != row["answer"]]
        assert not any(choice in texts[row["id"]] for choice in wrong)


def test_answers_stand_at_every_place(made):
    for name in ("translation_choice", "continuation_choice"):
        assert len({row["answer"] for row in rows(made, name)}) > 2


def test_examples_in_prompts_are_not_among_the_scored(made):
    shots, scored = rows(made, "translate_shots"), rows(made, "translate")
    assert (len(shots), len(scored)) == (3, 10)
    assert not {row["fi"] for row in shots} & {row["fi"] for row in scored}
    choices = [choice for row in rows(made, "translation_choice") for choice in row["choices"]]
    assert not {row["fi"] for row in shots} & set(choices)


def test_the_seed_decides_every_byte(made, tmp_path):
    again = build(STAGE, tmp_path, quiet)
    other = build(replace(STAGE, seed=1), tmp_path, quiet)
    for file in made.path.glob("*.jsonl"):
        assert file.read_bytes() == (again.path / file.name).read_bytes()
        assert file.read_bytes() != (other.path / file.name).read_bytes()


def test_another_language_needs_only_other_fields(tmp_path):
    swapped = replace(STAGE, source="fi", target="en", source_language="Finnish", target_language="English")
    row = rows(build(swapped, tmp_path, quiet), "translation_choice")[0]
    assert (row["source_language"], row["target_language"]) == ("Finnish", "English")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (replace(STAGE, items=100), "has 40 usable pairs of sentences, and 104 are needed"),
        (replace(STAGE, items=30, corpus=SmallCorpus(documents=4)), "has 12 usable passages, and 30 are needed"),
        (replace(STAGE, items=4, corpus=SmallCorpus(documents=1, sentences=24)), "too few held-out documents"),
        (replace(STAGE, corpus=SmallCorpus(columns=("en",))), "has no column 'fi'"),
        (replace(STAGE, documents="finish"), "no domain 'finish'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(stage, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build(stage, tmp_path, quiet)
    assert not list(tmp_path.glob("questions-*/manifest.json"))
