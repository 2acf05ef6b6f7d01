import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from ahkio.core.artifact import Artifact
from ahkio.core.errors import UserError
from ahkio.core.stage import Stage, build, knowledge
from ahkio.tokens import packing
from ahkio.tokens.batches import IGNORE, Rows, add, audit, cut, merged, open_batches, plan_of, stretches_of
from ahkio.tokens.mixture import Mix, Segment, Share
from ahkio.tokens.packing import PIECE, PIECES, ROWS, Packed, best_fit, open_packed, pack
from ahkio.tokens.shards import ShardWriter, id_dtype

T = 16


@dataclass(frozen=True, kw_only=True)
class Text(Stage):
    """Documents of 1 to 40 tokens, of which most do not go two to a row, in shards; no token is there twice."""

    name_: str
    count: int = 90
    side: str = "train"

    def documents(self):
        draw = np.random.default_rng([*self.name_.encode()])
        lengths = np.where(
            draw.random(self.count) < 0.6, draw.integers(9, T, self.count), draw.integers(1, 41, self.count)
        )
        ends = np.cumsum(lengths) + 10_000 * len(self.name_)
        return [list(range(end - n, end)) for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)]

    def run(self, out, inputs):
        documents = self.documents()
        for shard in range(3):
            with ShardWriter(out / f"shard-0000{shard}", id_dtype(100_000)) as writer:
                for document in documents[shard * self.count // 3 : (shard + 1) * self.count // 3]:
                    writer.add(np.array(document), np.array([len(document)]))
        return {"tokens": sum(map(len, documents)), "documents": len(documents)}


FI, ENG, CODE = Text(name_="fi"), Text(name_="eng"), Text(name_="code")
PACKED = Packed(tokens=FI, length=T)


def quiet(text): ...


@pytest.fixture
def store(tmp_path):
    for stage in (PACKED, Packed(tokens=ENG, length=T), CODE):
        build(stage, tmp_path, quiet)
    return tmp_path


def mix(**shares):
    return Mix(
        segments=(
            Segment(rows=0, shares=tuple(Share(name=n, tokens=stage, weight=w) for n, (stage, w) in shares.items())),
        )
    )


def opened(store, mixed=None, rows=24, **settings):
    mixed = mixed or mix(fi=(PACKED, 2), eng=(Packed(tokens=ENG, length=T), 1), code=(CODE, 1))
    paths = {stage: store / stage.name for stage in mixed.sources.values()}
    return open_batches(mixed, paths, Rows(length=T, per_step=12, **settings), rows)


def once_through(store, **settings):
    """Every row of PACKED, as one batch."""
    batches = opened(store, mix(fi=(PACKED, 1)), 1, **settings)
    return batches, batches.read(range(batches.plan.available["fi"]))


def segments(batch):
    """(row, ids, labels, positions) of each segment."""
    ids, labels, positions = (part.ravel().tolist() for part in (batch.ids_BT, batch.labels_BT, batch.positions_BT))
    ends = np.cumsum(batch.lengths).tolist()
    return [(a // T, ids[a:b], labels[a:b], positions[a:b]) for a, b in pairwise([0, *ends])]


# ---------------------------------------------------------------------------------------------------------------------
# The rows


def by_piece(lengths, length):
    """Best-fit decreasing as the paper has it, a piece at a time."""
    rows = []
    for size in sorted(lengths, reverse=True):
        fitting = [row for row in rows if length - sum(row) >= size]
        if fitting:
            min(fitting, key=lambda row: length - sum(row)).append(size)
        else:
            rows.append([size])
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_counted_best_fit_is_best_fit_piece_by_piece(seed):
    draw = np.random.default_rng(seed)
    length = int(draw.integers(2, 40))
    longest = int(draw.integers(1, length + 1))
    lengths = draw.integers(1, longest + 1, int(draw.integers(0, 300)))
    patterns = best_fit(np.bincount(lengths, minlength=length + 1).tolist(), length)
    found = [pattern.lengths for pattern in patterns for _ in range(pattern.rows)]
    assert all(sum(row) <= length for row in found)
    assert Counter(chain.from_iterable(found)) == Counter(lengths.tolist())
    assert Counter(map(sum, found)) == Counter(map(sum, by_piece(lengths, length)))


def test_a_piece_goes_where_it_fits_best():
    (one, two) = sorted(best_fit([0, 0, 1, 0, 1, 1, 0, 1], 9), key=lambda pattern: pattern.lengths)
    assert (one.lengths, two.lengths) == ((5, 4), (7, 2))


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_every_token_is_in_one_row_and_every_token_but_a_documents_first_is_a_label_once(store, monkeypatch, block):
    monkeypatch.setattr(packing, "BLOCK", block)
    (store / PACKED.name).rename(store / "at-once")
    build(PACKED, store, quiet)
    batches, batch = once_through(store)
    documents = FI.documents()
    rows = [part[: T - padding] for part, padding in zip(batch.ids_BT.tolist(), batch.padding, strict=True)]
    assert Counter(chain.from_iterable(rows)) == Counter(chain.from_iterable(documents))
    labels = batch.labels_BT[batch.labels_BT != IGNORE].tolist()
    assert Counter(labels) == Counter(chain.from_iterable(document[1:] for document in documents))
    facts = Artifact(store / PACKED.name).facts
    assert facts["rows"] == batches.plan.available["fi"] == len(rows)
    assert facts["padding"] == sum(batch.padding) == len(rows) * T - facts["tokens"]
    assert facts["trained_tokens"] == len(labels) == facts["tokens"] - facts["documents"]
    assert facts["documents_cut"] == sum(len(document) > T for document in documents)
    assert facts["pieces"] == sum(batch.documents) == sum(-(-len(document) // T) for document in documents)
    assert facts["documents_cut_by_stream"] == cut_by_stream(documents) > facts["documents_cut"]


def cut_by_stream(documents):
    ends = np.cumsum([len(document) for document in documents])
    return sum((end - 1) // T > (end - len(document)) // T for document, end in zip(documents, ends, strict=True))


def test_a_document_that_fits_is_whole_in_one_row_and_a_longer_one_fills_rows(store):
    _, batch = once_through(store)
    rows = [set(row) for row in batch.ids_BT.tolist()]
    for document in FI.documents():
        full, rest = divmod(len(document), T)
        holding = Counter(len(row & set(document)) for row in rows)
        assert holding == Counter({0: len(rows) - full - (rest > 0), T: full}) + Counter([rest] if rest else [])


def test_a_label_is_the_next_token_of_the_same_document(store):
    _, batch = once_through(store)
    lasts = {document[-1] for document in FI.documents()}
    for row, ids, labels, positions in segments(batch):
        assert positions == list(range(len(ids)))
        if ids[0] == 0:
            assert ids == [0] * batch.padding[row]
            assert set(labels) == {IGNORE}
        else:
            assert labels == [IGNORE if token in lasts else token + 1 for token in ids]


def test_across_documents_attention_crosses_but_not_into_padding_and_labels_stay(store):
    _, apart = once_through(store)
    _, batch = once_through(store, documents="across")
    assert np.array_equal(batch.ids_BT, apart.ids_BT)
    assert np.array_equal(batch.labels_BT, apart.labels_BT)
    assert batch.documents == apart.documents
    filled = [(T - padding, padding) for padding in batch.padding]
    assert batch.lengths.tolist() == [length for pair in filled for length in pair if length]
    assert all(positions == list(range(len(ids))) for _, ids, _, positions in segments(batch))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_documents_the_counts_are_exact(tmp_path, seed):
    draw = np.random.default_rng(seed)
    length = int(draw.integers(2, 200))
    lengths = np.maximum(0, draw.lognormal(draw.uniform(0, 6), 1.5, 3000)).astype("<i4")
    facts = pack(tmp_path, lengths, length)
    pieces, first = np.load(tmp_path / PIECES), np.load(tmp_path / ROWS)
    filled = np.add.reduceat(pieces["tokens"], first[:-1])
    assert filled.max() <= length
    assert filled.min() > 0
    assert facts["padding"] == len(filled) * length - lengths.sum(dtype=np.int64)
    assert facts["trained_tokens"] == lengths.sum() - (lengths > 0).sum()
    order = np.argsort(pieces["start"])
    ends = pieces["start"][order] + pieces["tokens"][order]
    assert ends[-1] == lengths.sum()
    assert (pieces["start"][order] == [0, *ends[:-1]]).all()


def test_a_million_documents_leave_next_to_no_padding(tmp_path):
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(6.5, 1.2, 10**6)).astype("<i4")
    facts = pack(tmp_path, lengths, 2048)
    assert facts["padding"] < 1e-4 * lengths.sum()


# ---------------------------------------------------------------------------------------------------------------------
# The batches


@pytest.mark.parametrize("ranks", [1, 2, 3, 12])
@pytest.mark.parametrize("micro_rows", [1, 5, 12])
def test_a_global_batch_of_any_layouts_is_the_same_on_any_ranks(store, ranks, micro_rows):
    batches = opened(store)
    for step in (0, 1):
        whole = batches.read(range(step * 12, step * 12 + 12))
        assert len(set(whole.sources)) == 3
        assert sum(whole.padding) > 0
        parts = [part for rank in range(ranks) for part in batches.micro(step, micro_rows, rank, ranks)]
        for one, other in zip(whole, [np.concatenate(arrays) for arrays in zip(*parts, strict=True)], strict=True):
            assert np.array_equal(one, other)
        cuts = [part for rank in range(ranks) for part in cut(whole, micro_rows, rank, ranks)]
        assert all(np.array_equal(a, b) for x, y in zip(cuts, parts, strict=True) for a, b in zip(x, y, strict=True))


def test_context_ranks_share_padded_rows_too(store):
    (batch,) = opened(store).micro(0, 12)
    parts = [stretches_of(batch, rank, 2) for rank in range(2)]
    assert sum((part.labels_BT != IGNORE).sum() for part in parts) == (batch.labels_BT != IGNORE).sum()
    everyone = np.concatenate([part.ids_BT.reshape(-1) for part in parts])
    assert sorted(everyone) == sorted(batch.ids_BT.reshape(-1))


def test_the_ledger_is_what_was_packed(store):
    batches = opened(store, mix(fi=(PACKED, 1)), 1)
    rows, facts = batches.plan.available["fi"], Artifact(store / PACKED.name).facts
    ledger = merged([add({}, batches.read([row]), batches.plan) for row in range(rows)], batches.plan)
    audit(ledger, batches.plan, [range(rows)])
    assert ledger["fi"] == {
        "rows": facts["rows"],
        "tokens": facts["rows"] * T,
        "padding": facts["padding"],
        "trained_tokens": facts["trained_tokens"],
        "documents": facts["pieces"],
        "epochs": 1.0,
    }


def test_a_ledger_from_before_padding_goes_on(store):
    batches = opened(store, mix(fi=(PACKED, 1)), 1)
    old = {"fi": {"rows": 3, "tokens": 3 * T, "trained_tokens": 40, "documents": 4, "epochs": 0.1}}
    batch = batches.read([3])
    assert add(old, batch, batches.plan)["fi"]["padding"] == batch.padding[0]


def test_packed_rows_open_at_once_and_are_read_one_by_one(store):
    made, rows = store / PACKED.name, 10**8
    first = open_memmap(made / ROWS, "w+", np.dtype("<i8"), (rows + 1,))  # sparse
    first[:2], first[-2:] = (0, 1), (1, 2)
    pieces = open_memmap(made / PIECES, "w+", PIECE, (2,))
    pieces[:] = [(0, 3, 2), (5, 4, 3)]
    ids, labels = np.zeros(T, np.int64), np.zeros(T, np.int64)
    began = time.perf_counter()
    packed = open_packed(made)
    assert packed.rows == rows
    assert packed.fill(rows - 1, ids, labels)[1] == 4
    assert time.perf_counter() - began < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Before anything is trained


def test_the_plan_foretells_the_rows_before_and_knows_them_after(store, tmp_path):
    before = knowledge(tmp_path / "nothing")
    assert before(PACKED) == {}
    known = {FI: {"tokens": 10 * T + 1, "domain": "fi"}, PACKED: None}
    told = PACKED.forecast(lambda stage: known[stage])
    assert (told["tokens"], told["rows"], told["length"]) == (10 * T + 1, 11, T)
    mixed = mix(fi=(PACKED, 1))
    assert plan_of(mixed, {"fi": told}, Rows(length=T)).available == {"fi": 11}
    facts = knowledge(store)(PACKED)
    assert plan_of(mixed, {"fi": facts}, Rows(length=T)).available == {"fi": facts["rows"]}


def test_rows_of_another_length_are_refused(store):
    sentence = "packed into rows of 16 tokens, and those of the run have 32"
    with pytest.raises(UserError, match=sentence):
        plan_of(mix(fi=(PACKED, 1)), {"fi": knowledge(store)(PACKED)}, Rows(length=32))
    with pytest.raises(UserError, match=sentence):
        open_batches(mix(fi=(PACKED, 1)), {PACKED: store / PACKED.name}, Rows(length=32), 1)


def test_what_can_not_be_packed_is_refused():
    with pytest.raises(UserError, match="held-out text"):
        Packed(tokens=Text(name_="fi", side="heldout"), length=T)
    with pytest.raises(UserError, match="at least 2"):
        Packed(tokens=FI, length=1)


def test_a_damaged_or_lonely_artifact_says_what_to_do(store):
    (store / PACKED.name / PIECES).write_bytes(b"no array")
    with pytest.raises(UserError, match="delete it and build again"):
        open_packed(store / PACKED.name)
    (store / FI.name).rename(store / "elsewhere")
    with pytest.raises(UserError, match=r"ids of .* are gone"):
        open_packed(store / PACKED.name)
