import pytest
from small_run import BOS, MIX, TRAIN, WORDS

from ahkio.core.errors import UserError
from ahkio.tokens.batches import IGNORE, open_batches
from ahkio.train.peek import peek_rows


def test_the_rows_shown_are_those_that_training_reads(inputs):
    paths = {stage: inputs / stage.name for stage in MIX.sources.values()}
    batches = open_batches(MIX, paths, TRAIN.rows, TRAIN.total_rows)
    for step in (0, 3, 7):
        (batch,) = batches.micro(step, 6)
        shown = peek_rows(TRAIN, inputs, step)
        assert [row["ids"] for row in shown] == batch.ids_BT.tolist()
        assert [row["source"] for row in shown] == list(batch.sources)
        assert [row["row"] for row in shown] == list(range(6 * step, 6 * step + 6))
        assert [row["trained_tokens"] for row in shown] == (batch.labels_BT != IGNORE).sum(1).tolist()
        assert sum(row["documents"] for row in shown) == len(batch.lengths)


def test_the_text_is_what_the_ids_say_with_its_marks(inputs):
    for row in peek_rows(TRAIN, inputs, 1):
        assert len(row["ids"]) == 32
        assert row["text"].count(BOS) == row["ids"].count(0)
        words = {word for name in WORDS for word in WORDS[name].split()}
        assert any(word in row["text"] for word in words)


def test_ranks_show_their_own_parts(inputs):
    together = [row for rank in range(3) for row in peek_rows(TRAIN, inputs, 2, rank, 3)]
    assert together == peek_rows(TRAIN, inputs, 2)


def test_a_step_past_the_end_is_refused(inputs):
    with pytest.raises(UserError, match="--step 8: the run has 8 steps"):
        peek_rows(TRAIN, inputs, 8)


def test_rows_of_tokens_that_are_not_built_are_refused(tmp_path):
    with pytest.raises(UserError, match="not built yet"):
        peek_rows(TRAIN, tmp_path, 0)
