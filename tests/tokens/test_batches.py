from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pytest

from ahkio.core.errors import UserError
from ahkio.core.stage import Stage
from ahkio.tokens.batches import IGNORE, Rows, add, audit, cut, merged, open_batches, plan_of, stretches_of
from ahkio.tokens.mixture import Mix, Segment, Share
from ahkio.tokens.shards import ShardWriter, id_dtype

T = 16


@dataclass(frozen=True, kw_only=True)
class Text(Stage):
    domain: str


def documents_of(source, count=60):
    """Documents of 1 to 39 tokens that start with 1 and whose other ids are unlike those of other sources."""
    draw = np.random.default_rng(len(source))
    return [[1, *draw.integers(2, 300, n - 1).tolist()] for n in draw.integers(1, 40, count)]


def write(folder, documents):
    folder.mkdir()
    for shard in range(3):
        with ShardWriter(folder / f"shard-0000{shard}", id_dtype(300)) as writer:
            for document in documents[shard::3]:
                writer.add(np.array(document), np.array([len(document)]))
    return folder


@pytest.fixture
def world(tmp_path):
    return {Text(domain=name): write(tmp_path / name, documents_of(name)) for name in ("fi", "eng", "code")}


def mix(weights=(("fi", 0.5), ("eng", 0.3), ("code", 0.2)), rows=0):
    shares = tuple(Share(name=name, tokens=Text(domain=name), weight=weight) for name, weight in weights)
    return Mix(segments=(Segment(rows=rows, shares=shares),))


def opened(world, rows=48, **settings):
    return open_batches(mix(), world, Rows(length=T, per_step=12, **settings), rows)


def segment(rows=0, **weights):
    shares = tuple(Share(name=name, tokens=Text(domain=name), weight=weight) for name, weight in weights.items())
    return Segment(rows=rows, shares=shares)


def stream(name):
    """The ids of a source end to end, and the places where documents start, worked out without TokenStore."""
    documents = [d for shard in range(3) for d in documents_of(name)[shard::3]]
    return list(chain.from_iterable(documents)), {0, *np.cumsum([len(d) for d in documents]).tolist()}


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("documents", ["separate", "across"])
def test_a_row_is_its_window_of_the_stream_with_labels_one_ahead(world, documents):
    batches = opened(world, documents=documents)
    batch = batches.read(range(48))
    ends = np.cumsum(batch.lengths).tolist()
    for b in range(48):
        place = batches.plan.row(b)
        ids, starts = stream(place.source)
        window, first = ids[place.row * T : place.row * T + T + 1], place.row * T
        assert batch.sources[b] == place.source
        assert batch.ids_BT[b].tolist() == window[:T]
        position = 0
        for t in range(T):
            begins = documents == "separate" and first + t in starts
            position = 0 if begins or t == 0 else position + 1
            next_begins = documents == "separate" and first + t + 1 in starts
            assert batch.positions_BT[b, t] == position
            assert batch.labels_BT[b, t] == (IGNORE if next_begins else window[t + 1])
            assert (b * T + t + 1 in ends) == (next_begins or t == T - 1)
    assert batch.lengths.sum() == 48 * T
    assert (batch.lengths > 0).all()
    assert batch.rows == tuple(range(48))


def test_the_types_are_what_the_train_room_expects(world):
    batch = opened(world).read(range(5, 8))
    assert (batch.ids_BT.dtype, batch.labels_BT.dtype, batch.positions_BT.dtype) == (np.int64, np.int64, np.int64)
    assert batch.lengths.dtype == np.int32
    assert batch.ids_BT.shape == batch.labels_BT.shape == batch.positions_BT.shape == (3, T)
    assert batch.ids_BT.flags.c_contiguous
    assert batch.rows == (5, 6, 7)


def test_across_documents_a_row_is_one_segment_and_all_of_it_is_trained(world):
    batch = opened(world, documents="across").read(range(12))
    assert batch.lengths.tolist() == [T] * 12
    assert (batch.labels_BT != IGNORE).all()
    assert (batch.positions_BT == np.arange(T)).all()


def test_neighbouring_rows_share_one_token_so_that_each_is_a_label_once(world):
    batches = opened(world, documents="across")
    rows = {batches.plan.row(i): i for i in range(200)}
    first_epoch = {row.row: i for row, i in rows.items() if row.source == "fi" and row.epoch == 0}
    ids, _ = stream("fi")
    available = batches.plan.available["fi"]
    assert available == (len(ids) - 1) // T
    assert sorted(first_epoch) == list(range(available))
    batch = batches.read([first_epoch[k] for k in range(available)])
    assert batch.labels_BT.ravel().tolist() == ids[1 : available * T + 1]
    assert (batch.labels_BT[:-1, -1] == batch.ids_BT[1:, 0]).all()


@pytest.mark.parametrize("extra", [0, 1])
def test_a_row_takes_one_token_more_than_its_length(extra):
    def plan(facts):
        return plan_of(mix(), dict.fromkeys(("fi", "eng", "code"), facts), Rows(length=T))

    assert set(plan({"tokens": 10 * T + extra}).available.values()) == {9 + extra}
    assert set(plan({"tokens": 0}).available.values()) == set(plan({}).available.values()) == {0}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("micro_rows", [1, 5, 12])
def test_a_global_batch_is_the_same_on_any_ranks_and_micro_batches(world, ranks, micro_rows):
    batches = opened(world)
    for step in (0, 3):
        whole = batches.read(range(step * 12, step * 12 + 12))
        parts = [part for rank in range(ranks) for part in batches.micro(step, micro_rows, rank, ranks)]
        assert all(len(part.rows) <= micro_rows for part in parts)
        assert same(whole, [np.concatenate(arrays) for arrays in zip(*parts, strict=True)])


def test_a_batch_depends_on_step_and_rank_alone(world):
    forwards = [list(opened(world).micro(step, 4, 1, 2)) for step in range(4)]
    batches = opened(world)
    for step in (3, 1, 0, 2):
        assert all(same(a, b) for a, b in zip(batches.micro(step, 4, 1, 2), forwards[step], strict=True))


@pytest.mark.parametrize("ranks", [2, 4])
def test_context_ranks_share_a_row_and_each_stretch_sees_its_document_up_to_itself(world, ranks):
    (batch,) = opened(world).micro(1, 12)
    parts = [stretches_of(batch, rank, ranks) for rank in range(ranks)]
    everyone = np.concatenate([part.ids_BT.reshape(-1) for part in parts])
    assert sorted(everyone) == sorted(batch.ids_BT.reshape(-1))
    assert sum((part.labels_BT != IGNORE).sum() for part in parts) == (batch.labels_BT != IGNORE).sum()
    for part in parts:
        own, seen = part.ids_BT.reshape(-1), np.split(everyone[part.places], np.cumsum(part.seen_lengths)[:-1])
        stretches = np.split(own, np.cumsum(part.lengths)[:-1])
        starts = np.split(part.positions_BT.reshape(-1), np.cumsum(part.lengths)[:-1])
        for stretch, positions, keys in zip(stretches, starts, seen, strict=True):
            assert len(keys) == positions[-1] + 1  # from the document's first token on
            assert keys[-len(stretch) :].tolist() == stretch.tolist()


def test_context_ranks_have_as_much_to_attend_to(world):
    (batch,) = opened(world, documents="across").micro(0, 12)
    work = [(part.lengths * part.seen_lengths).sum() for part in (stretches_of(batch, rank, 4) for rank in range(4))]
    assert max(work) < 1.3 * min(work)


def test_a_batch_is_cut_as_it_would_have_been_read(world):
    batches = opened(world)
    (whole,) = batches.micro(1, 12)
    for rank in range(3):
        for one, other in zip(cut(whole, 2, rank, 3), batches.micro(1, 2, rank, 3), strict=True):
            assert same(one, other)


FIRST, SECOND = segment(rows=30, fi=5, eng=3, code=2), segment(fi=1, eng=1)


@pytest.mark.parametrize(
    "appended",
    {
        "new weights": (segment(fi=1, eng=4),),
        "a new source": (segment(fi=2, eng=1, sv=1),),
        "a longer budget": (SECOND,),
        "an annealing tail": (segment(rows=20, code=1, sv=3), segment(rows=10, sv=1)),
    }.values(),
    ids=lambda segments: f"{len(segments)} of {'-'.join(segments[0].names)}",
)
def test_segments_appended_on_the_way_change_no_batch_before_them(world, tmp_path, appended):
    """The run under way has read 60 rows; its last segment was open, or stated to end there."""
    world |= {Text(domain="sv"): write(tmp_path / "sv", documents_of("sv"))}
    settings = Rows(length=T, per_step=12)
    extended = open_batches(Mix(segments=(FIRST, replace(SECOND, rows=30), *appended)), world, settings, 84)
    for planned in (SECOND, replace(SECOND, rows=30)):
        before = open_batches(Mix(segments=(FIRST, planned)), world, settings, 60)
        assert same(extended.read(range(60)), before.read(range(60)))
        ledgers = [add({}, one.read(range(60)), one.plan) for one in (extended, before)]
        assert ledgers[0] == ledgers[1]
        audit(ledgers[1], extended.plan, [range(60)])
    after = extended.read(range(60, 84))
    assert {name for one in appended for name in one.names} >= set(after.sources)
    whole = merged([ledgers[0], add({}, after, extended.plan)], extended.plan)
    audit(whole, extended.plan, [range(84)])


def test_a_longer_budget_goes_on_as_if_it_had_been_planned_so(world):
    settings = Rows(length=T, per_step=12)
    whole = open_batches(mix(), world, settings, 84)
    pieces = open_batches(Mix(segments=(*mix(rows=60).segments, *mix().segments)), world, settings, 84)
    assert same(whole.read(range(84)), pieces.read(range(84)))


def test_a_step_that_ranks_cannot_share_evenly_is_refused(world):
    with pytest.raises(UserError, match="12 rows can't be divided evenly among 5 ranks"):
        opened(world).rows_of(0, 0, 5)


def test_sources_that_name_the_same_tokens_share_one_store(world):
    shares = tuple(Share(name=name, tokens=Text(domain="fi"), weight=1) for name in ("once", "again"))
    batches = open_batches(Mix(segments=(Segment(rows=0, shares=shares),)), world, Rows(length=T, per_step=2), 10)
    assert batches.layouts["once"] is batches.layouts["again"]


def test_a_run_that_needs_too_many_epochs_is_refused_before_the_first_step(world):
    with pytest.raises(UserError, match=r"Source 'fi' has \d+ rows .* above its max_epochs of 4"):
        opened(world, rows=10_000)


def test_a_source_smaller_than_one_row_is_refused(world, tmp_path):
    small = {**world, Text(domain="code"): write(tmp_path / "small", [[1, 2], [1, 3], [1, 4]])}
    with pytest.raises(UserError, match=f"'code' has fewer than the {T + 1} tokens that one row takes"):
        opened(small)


def test_rows_of_nothing_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        Rows(length=0)


def test_the_ledger_counts_what_was_read_and_agrees_with_the_plan(world):
    batches = opened(world)
    plan, ledger, trained = batches.plan, {}, Counter()
    for step in range(3):
        for batch in batches.micro(step, 5):
            before = {name: dict(counts) for name, counts in ledger.items()}
            later = add(ledger, batch, plan)
            assert ledger == before
            ledger = later
            for source, labels_T in zip(batch.sources, batch.labels_BT, strict=True):
                trained[source] += int((labels_T != IGNORE).sum())
    audit(ledger, plan, [range(36)])
    for name, count in plan.counts(36).items():
        epochs = count / plan.available[name]
        counts = {"rows": count, "tokens": count * T, "padding": 0, "trained_tokens": trained[name], "epochs": epochs}
        assert ledger[name] == counts | {"documents": ledger[name]["documents"]}
        assert ledger[name]["documents"] >= count
    ranks = [add({}, batches.read(batches.rows_of(step, rank, 2)), plan) for step in range(3) for rank in range(2)]
    assert merged(ranks, plan) == ledger


def test_a_ledger_of_another_run_is_refused_with_both_counts(world):
    batches = opened(world)
    ledger = add({}, batches.read(range(24)), batches.plan)
    sentence = "After 36 rows of the run, 12 rows of source 'fi' were read and the plan has 18"
    with pytest.raises(UserError, match=sentence):
        audit(ledger, batches.plan, [range(36)])
    with pytest.raises(UserError, match="3 rows of source 'sv' were read and the plan has 0"):
        audit({**ledger, "sv": {"rows": 3}}, batches.plan, [range(24)])
