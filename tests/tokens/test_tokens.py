import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import zstandard
from tiny_tokenizer import TinyTokenizer

from ahkio.core.config import how
from ahkio.core.errors import UserError
from ahkio.core.stage import Stage, build, build_part, inputs_of, knowledge
from ahkio.tokens import tokens as tokens_module
from ahkio.tokens.encode import framed
from ahkio.tokens.shards import TokenStore
from ahkio.tokens.tokenizer import Encoder
from ahkio.tokens.tokens import Tokens

TRAIN = (("Hyvää yötä.", "yö ja päivä <|endoftext|> 123"), ("Toinen pala\n\n  tekstiä",), ("ä" * 40, "", "loppu"))
HELDOUT = ("äää yö", "pidetty erillään")


def write_jsonl(path, texts):
    buffer = io.StringIO()
    for number, text in enumerate(texts):
        buffer.write(json.dumps({"id": str(number), "text": text, "group": str(number)}) + "\n")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zstandard.compress(buffer.getvalue().encode()))


@dataclass(frozen=True, kw_only=True)
class TinyCorpus(Stage):
    """A corpus artifact written by hand: a domain `fi` of three shards and an empty one."""

    texts: tuple[tuple[str, ...], ...] = TRAIN
    mark: int = how(0)

    def run(self, out, inputs):
        for number, texts in enumerate(self.texts):
            write_jsonl(out / "fi" / f"train-{number:05}.jsonl.zst", texts)
        write_jsonl(out / "fi" / "heldout.jsonl.zst", HELDOUT)
        write_jsonl(out / "empty" / "train-00000.jsonl.zst", ())
        return {"mark": self.mark} | self.forecast(None)

    def forecast(self, known):
        side = {"documents": 6, "bytes": 4000, "words": 9}
        return {"domains": {"fi": {"train": side, "heldout": side}, "empty": {}}}


STAGE = Tokens(corpus=TinyCorpus(), domain="fi", tokenizer=TinyTokenizer(), workers=1)


def quiet(text): ...


def decoded(made, encoder):
    store = TokenStore(made.path)
    return [encoder.decode(store.document(i).tolist(), skip_special=False) for i in range(store.documents)]


def files(path):
    return {file.name: file.read_bytes() for file in path.glob("shard-*") if file.suffix != ".json"}


def test_every_document_comes_back_between_its_marks_in_order(tmp_path):
    made = build(STAGE, tmp_path, quiet)
    encoder = Encoder.load(tmp_path / STAGE.tokenizer.name)
    texts = [text for shard in TRAIN for text in shard]
    assert decoded(made, encoder) == [f"<|start|>{text}<|endoftext|>" for text in texts]
    store = TokenStore(made.path)
    assert all(1 not in store.document(i)[1:] and 0 not in store.document(i)[:-1] for i in range(store.documents))
    assert not list(made.path.glob("*.tmp"))


def test_the_facts_count_what_was_written(tmp_path):
    made = build(STAGE, tmp_path, quiet)
    texts, facts, store = [text for shard in TRAIN for text in shard], made.facts, TokenStore(made.path)
    assert (facts["tokens"], facts["documents"], facts["shards"]) == (store.tokens, 6, 3)
    assert facts["bytes"] == sum(len(text.encode()) for text in texts)
    assert facts["words"] == sum(len(text.split()) for text in texts)
    assert facts["text_tokens"] == facts["tokens"] - 2 * 6
    assert facts["tokens_per_word"] == pytest.approx(facts["text_tokens"] / facts["words"], abs=1e-4)
    assert facts["bytes_per_token"] == pytest.approx(facts["bytes"] / facts["text_tokens"], abs=1e-4)
    assert (facts["bos"], facts["eos"], facts["vocab"], facts["dtype"]) == (1, 0, 300, "uint16")
    assert (facts["round_trip_texts"], facts["round_trip_mismatches"]) == (6, 0)
    assert facts["tokenizer_sha256"] == Encoder.load(tmp_path / STAGE.tokenizer.name).sha256


@dataclass(frozen=True, kw_only=True)
class Lowering(TinyTokenizer):
    """A tokenizer that does not give every text back."""

    def run(self, out, inputs):
        facts = super().run(out, inputs)
        data = json.loads((out / "tokenizer.json").read_text()) | {"normalizer": {"type": "Lowercase"}}
        (out / "tokenizer.json").write_text(json.dumps(data))
        return facts


def test_texts_that_do_not_come_back_are_counted(tmp_path):
    facts = build(replace(STAGE, tokenizer=Lowering()), tmp_path, quiet).facts
    assert (facts["round_trip_texts"], facts["round_trip_mismatches"]) == (6, 2)


def test_neither_workers_nor_fastokens_change_the_files(tmp_path):
    alone = build(STAGE, tmp_path / "a", quiet)
    others = build(replace(STAGE, workers=2), tmp_path / "b", quiet)
    plain = build(replace(STAGE, fast=False), tmp_path / "c", quiet)
    assert files(alone.path) == files(others.path) == files(plain.path)
    assert alone.path.name == others.path.name == plain.path.name
    assert plain.facts["engine"] == "tokenizers"


def test_the_held_out_side_keeps_the_size_of_each_text(tmp_path):
    made = build(replace(STAGE, side="heldout"), tmp_path, quiet)
    store = TokenStore(made.path)
    assert [store.document_bytes(i) for i in range(2)] == [len(text.encode()) for text in HELDOUT]


def test_heads_are_cut_at_a_character(tmp_path):
    made = build(replace(STAGE, side="heldout", head_bytes=5), tmp_path, quiet)
    store, encoder = TokenStore(made.path), Encoder.load(tmp_path / STAGE.tokenizer.name)
    assert [encoder.decode(store.document(i).tolist()) for i in range(2)] == ["ää", "pidet"]
    assert [store.document_bytes(i) for i in range(2)] == [4, 5]


def interrupt_at(monkeypatch, shard):
    """Let the run die on reaching `shard`, as by a kill; return the list of shards that get encoded."""
    encode, seen = tokens_module.encode_shard, []

    def dying(job):
        seen.append(job.prefix.name)
        if job.prefix.name == shard:
            job.prefix.with_suffix(".bin.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        encode(job)

    monkeypatch.setattr(tokens_module, "encode_shard", dying)
    return seen


def test_a_killed_run_goes_on_by_shard_and_equals_an_unbroken_one(tmp_path, monkeypatch):
    unbroken = build(STAGE, tmp_path / "a", quiet)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "shard-00001")
        with pytest.raises(KeyboardInterrupt):
            build(STAGE, tmp_path / "b", quiet)
    assert STAGE.progress(tmp_path / "b" / f"{STAGE.name}.draft") == "1 of 3 shards"
    seen = interrupt_at(monkeypatch, "none")
    resumed = build(STAGE, tmp_path / "b", quiet)
    assert seen == ["shard-00001", "shard-00002"]
    assert files(resumed.path) == files(unbroken.path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1)])
def test_parts_in_any_order_make_the_same_shards_and_publish_nothing(tmp_path, monkeypatch, order):
    whole = build(STAGE, tmp_path / "a", quiet)
    for needed in inputs_of(STAGE):
        build(needed, tmp_path / "b", quiet)
    for part in order:
        build_part(STAGE, tmp_path / "b", part, 2)
    assert not (tmp_path / "b" / STAGE.name).exists()
    seen = interrupt_at(monkeypatch, "none")
    made = build(STAGE, tmp_path / "b", quiet)
    assert (seen, files(made.path), made.facts) == ([], files(whole.path), whole.facts)


def test_a_part_that_was_killed_is_finished_by_itself_or_by_the_whole(tmp_path, monkeypatch):
    whole = build(STAGE, tmp_path / "a", quiet)
    for store, again in (("b", True), ("c", False)):
        for needed in inputs_of(STAGE):
            build(needed, tmp_path / store, quiet)
        with monkeypatch.context() as patch:
            interrupt_at(patch, "shard-00002")
            with pytest.raises(KeyboardInterrupt):
                build_part(STAGE, tmp_path / store, 0, 2)
        if again:
            build_part(STAGE, tmp_path / store, 0, 2)
        made = build(STAGE, tmp_path / store, quiet)
        assert files(made.path) == files(whole.path)
        assert not list(made.path.glob("*.tmp"))


def test_parts_need_a_stage_that_divides_and_its_inputs(tmp_path):
    with pytest.raises(UserError, match=r"tinycorpus-\w+ is not made in parts"):
        build_part(STAGE.corpus, tmp_path, 0, 2)
    with pytest.raises(UserError, match=r"needs tinycorpus-\w+, which is not there; build that before the parts"):
        build_part(STAGE, tmp_path, 0, 2)


def test_shards_of_a_corpus_that_has_been_made_anew_are_not_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, "shard-00002")
        with pytest.raises(KeyboardInterrupt):
            build(STAGE, tmp_path, quiet)
    (tmp_path / STAGE.corpus.name).rename(tmp_path / "elsewhere")
    seen = interrupt_at(monkeypatch, "none")
    build(replace(STAGE, corpus=TinyCorpus(mark=1)), tmp_path, quiet)
    assert len(seen) == 3


def test_a_domain_that_is_not_there_or_is_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no domain 'fin'; it has: fi, empty\. Did you mean 'fi'"):
        build(replace(STAGE, domain="fin"), tmp_path, quiet)
    with pytest.raises(UserError, match="Domain 'empty' has no documents on its train side"):
        build(replace(STAGE, domain="empty"), tmp_path, quiet)


def test_a_plan_knows_the_tokens_before_they_are_made(tmp_path):
    known = knowledge(tmp_path)
    assert known(STAGE)["tokens"] == 1000
    assert known(replace(STAGE, head_bytes=10))["tokens"] == 15
    assert known(replace(STAGE, expect_tokens=49_649_704_835))["tokens"] == 49_649_704_835
    assert "Did you mean 'fi'" in known(replace(STAGE, domain="fin"))["refusal"]
    made = build(STAGE, tmp_path, quiet)
    assert knowledge(tmp_path)(replace(STAGE, expect_tokens=5)) == made.facts


@pytest.mark.parametrize(("bos", "expected"), [(8, [8, 1, 2, 9, 8, 9, 8, 3, 9]), (None, [1, 2, 9, 9, 3, 9])])
def test_framing_marks_every_document_also_an_empty_one(bos, expected):
    ids, bounds = np.array([1, 2, 3], np.uint32), np.array([0, 2, 2, 3])
    stream, lengths = framed(ids, bounds, bos, 9)
    assert stream.tolist() == expected
    assert lengths.tolist() == [2 + (bos is not None) + extra for extra in (1, -1, 0)]
    assert framed(ids[:0], bounds[:1], bos, 9)[0].tolist() == []
