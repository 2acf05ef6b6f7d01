import json
from dataclasses import dataclass

import pytest
import torch
from tiny_llama import VOCAB, close, theirs, write

from ahkio.core.artifact import sha256, write_json
from ahkio.core.errors import UserError
from ahkio.core.stage import Stage, build, knowledge
from ahkio.model.embeddings import extended
from ahkio.model.extended import ROWS, Extended, rows_for
from ahkio.model.hub import load_model, read_tensors
from ahkio.model.imported import Import

FIRST = 90  # the tokenizer knows fewer ids than the model has rows
PIECES = [[3, 4], [3, 4, 5], [89], [7, 7]] + [[0, 1]] * 60
BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


def quiet(text): ...


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Stage):
    """What an ExtendedTokenizer of the model's own tokenizer leaves, as far as a model reads it."""

    base: str
    first: int = FIRST

    def run(self, out, inputs):
        (out / "tokenizer.json").write_text('{"more": 1}')
        (out / "tokenizer_config.json").write_text("{}")
        write_json(out / "pieces.json", {"base_sha256": self.base, "first": self.first, "pieces": PIECES})
        return {"added": len(PIECES)}


@dataclass(frozen=True, kw_only=True)
class Nothing(Stage):
    def run(self, out, inputs):
        return {}


def folder_of(path, tied, shard=""):
    made = write(path / "whole", tie_word_embeddings=tied)
    if shard:
        theirs(made).save_pretrained(path / "parts", max_shard_size=shard)
        made = path / "parts"
    (made / "tokenizer.json").write_text("{}")
    return made


def stage_of(folder, **changes):
    start = Import(model=str(folder), license="MIT", origin="Random numbers.", gate="skip")
    return Extended(start=start, tokenizer=Tokenizer(base=sha256(folder / "tokenizer.json")), **changes)


@pytest.fixture(scope="module", params=["tied", "untied", "in parts"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return folder_of(path, request.param == "tied", "10KB" if request.param == "in parts" else "")


def test_old_rows_are_the_same_bits_and_new_ones_the_mean_of_their_pieces(folder, tmp_path):
    made = build(stage_of(folder), tmp_path, quiet)
    old, new = dict(read_tensors(folder)), dict(read_tensors(made.path))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - set(BY_TOKEN))
    for name in set(BY_TOKEN) & set(old):
        table, grown = old[name], new[name]
        assert grown.shape == (2 * ROWS, 32)
        assert torch.equal(grown[:FIRST], table[:FIRST])
        wanted = torch.stack([table[one].mean(0) for one in PIECES])
        assert close(grown[FIRST : FIRST + len(PIECES)], wanted)
        assert close(grown[FIRST + len(PIECES) :], table[:FIRST].mean(0))


def test_the_folder_is_a_model_with_the_new_tokenizer(folder, tmp_path):
    made = build(stage_of(folder, gate="check"), tmp_path, quiet)
    assert made.facts["gate"]["checked"]
    assert json.loads((made.path / "config.json").read_bytes())["vocab_size"] == 2 * ROWS
    assert load_model(made.path).config.vocab == 2 * ROWS
    assert (made.path / "tokenizer.json").read_text() == '{"more": 1}'
    files = {path.name for path in made.path.iterdir()}
    assert files == {path.name for path in folder.iterdir()} | {"manifest.json", "tokenizer_config.json"}


def test_the_facts_are_those_of_an_import_in_the_new_size(folder, tmp_path):
    stage = stage_of(folder)
    made = build(stage, tmp_path, quiet)
    start = build(stage.start, tmp_path, quiet).facts
    config = load_model(made.path).config
    assert made.facts.keys() >= start.keys()
    assert (made.facts["parameters"], made.facts["config"]["vocab"]) == (config.parameters, 2 * ROWS)
    assert (made.facts["model"], made.facts["license"]) == (start["model"], "MIT")
    assert made.facts["origin"].startswith("Random numbers. Its tokenizer was extended by 64 tokens")
    assert (made.facts["added"], made.facts["filled_up_rows"]) == (64, 2 * ROWS - FIRST - 64)


def test_rows_are_filled_up_to_a_multiple_and_never_taken_away():
    assert [rows_for(97, ids) for ids in (95, 97, 98, 128, 129)] == [97, 97, 128, 128, 256]


def test_rows_that_the_model_has_in_store_are_used_and_the_rest_stays():
    table = torch.randn(12, 3, dtype=torch.bfloat16)
    grown = extended(table, first=8, pieces=[[0, 1], [2]], rows=12)
    assert grown.dtype == torch.bfloat16
    assert torch.equal(grown[[*range(8), 10, 11]], table[[*range(8), 10, 11]])
    assert torch.equal(grown[9], table[2])


def test_a_plan_knows_the_shape_to_come(folder, tmp_path):
    known = knowledge(tmp_path)
    stage = stage_of(folder)
    assert "config" not in known(stage)
    build(stage.start, tmp_path, quiet)
    build(stage.tokenizer, tmp_path, quiet)
    foreseen = knowledge(tmp_path)(stage)
    assert foreseen["config"] == build(stage, tmp_path, quiet).facts["config"]


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("tied"), True)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (Tokenizer(base="0" * 64), "extends another tokenizer than that of import-"),
        (Nothing(), "adds no tokens to a model; give an ExtendedTokenizer"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tied, tmp_path, tokenizer, said):
    start = Import(model=str(tied), gate="skip")
    with pytest.raises(UserError, match=said) as refused:
        build(Extended(start=start, tokenizer=tokenizer), tmp_path, quiet)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tied, tmp_path):
    tokenizer = Tokenizer(base=sha256(tied / "tokenizer.json"), first=VOCAB + 1)
    with pytest.raises(UserError, match="has 97 rows, but its tokenizer gives ids up to 97"):
        build(Extended(start=Import(model=str(tied), gate="skip"), tokenizer=tokenizer), tmp_path, quiet)
