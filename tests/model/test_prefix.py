import itertools
import random

import pytest
import torch
from tiny_llama import KINDS, close, one, pair

from ahkio.model import prefix
from ahkio.model.attention import rotate
from ahkio.model.decode import Cache
from ahkio.model.llama import angles
from ahkio.model.prefix import attend_paths, attend_runs, plans, read_shared


@pytest.fixture(scope="module", params=["tied", "no groups", "wide heads"])
def model(request, tmp_path_factory):
    return pair(tmp_path_factory.mktemp("model"), **KINDS[request.param])[0]


def family(seed, items=6, vocab=97):
    """Sequences such as a task asks for: common examples, then an item, then its choices; some without the examples."""
    rng = random.Random(seed)

    def text(length):
        return [rng.randrange(vocab) for _ in range(length)]

    examples = text(40)
    contexts = [examples[: rng.choice((0, 3, 25, 40, 40))] + text(rng.randrange(1, 20)) for _ in range(items)]
    asked = [(context, text(rng.choice((1, 1, 2, 11)))) for context in contexts for _ in range(4)]
    rng.shuffle(asked)
    return [context + choice[:-1] for context, choice in asked], [len(context) - 1 for context, _ in asked]


def states(model, sequences, since, tokens_per_batch, cache=None):
    found = {}
    for numbers, batch in read_shared(model, sequences, since, tokens_per_batch, cache):
        found |= zip(numbers, batch, strict=True)
    return [found[number] for number in range(len(sequences))]


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 100, 4096])
def test_sequences_read_together_have_the_states_that_each_has_alone(model, tokens_per_batch):
    sequences, since = family(tokens_per_batch)
    found = states(model, sequences, since, tokens_per_batch)
    for x_TD, sequence, first in zip(found, sequences, since, strict=True):
        assert close(x_TD, model(*one(sequence))[0, first:].detach())


def test_everything_in_common_is_read_once_and_slivers_are_read_again():
    shots = list(range(50))
    sequences = [[*shots, item, *range(60, 70), choice] for item in (51, 52) for choice in (71, 72, 73)]
    (plan,) = plans(sequences, [49] * 6, 4096)
    assert len(plan.ids) == 50 + 2 * (1 + 10 + 3)
    (plan,) = plans([[1, 2, 3, 4], [1, 2, 3, 5]], [0, 0], 4096)
    assert len(plan.ids) == 8


def test_a_batch_goes_on_from_the_keys_of_the_batch_before():
    shots = list(range(50))
    sequences = [[*shots, 60 + item] for item in range(20)]
    batches = list(plans(sequences, [49] * 20, 54))
    assert len(batches) > 1
    # The state at the last example is asked for, so each item of a later batch reads that token again beside its own.
    assert sum(len(plan.ids) for plan in batches) <= 50 + 2 * 20


def test_no_more_keys_are_kept_than_one_sequence_has(model, monkeypatch):
    sequences, since = family(0, items=30)
    kept = []
    real = prefix._Attention.__call__

    def counted(self, *arguments):
        kept.append(len(self.before[0][0]) if self.before else 0)
        return real(self, *arguments)

    monkeypatch.setattr(prefix._Attention, "__call__", counted)
    states(model, sequences, since, 60)
    assert 0 < max(kept) <= max(map(len, sequences))


def test_paths_attended_to_apart_give_what_each_run_gives_whole():
    sequences, _ = family(3)
    (plan,) = plans(sequences, [0] * len(sequences), 4096)
    N, generator = len(plan.ids), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(N, heads, 16, generator=generator) for heads in (4, 2, 2))
    y, lse = torch.empty_like(q), torch.empty(4, N)
    for run in plan.runs:
        span = slice(run.start, run.end)
        scores = torch.einsum("the,she->hts", q[span], k[span].repeat_interleave(2, 1)) / 4
        scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        y[span] = torch.einsum("hts,she->the", scores.softmax(-1), v[span].repeat_interleave(2, 1))
        lse[:, span] = scores.logsumexp(-1)
    assert close(attend_paths(q, k, v, plan.runs, y, lse), attend_runs(q, k, v, plan.runs))


def test_the_cache_holds_the_keys_of_every_row(model):
    sequences, _ = family(1)
    c = model.config
    cache = Cache(c, [len(sequence) for sequence in sequences], 2, torch.float32, torch.device("cpu"))
    states(model, sequences, [len(sequence) - 1 for sequence in sequences], 50, cache)
    for row, sequence in enumerate(sequences):
        block = model.blocks[0]
        x_TD = block.attention_norm(model.embed(torch.tensor(sequence)))
        k_TKE = block.attention.k(x_TD).unflatten(-1, (-1, c.head_width)).detach()
        wanted = rotate(k_TKE, angles(torch.arange(len(sequence)), c))
        assert close(cache.keys[0, row, :, cache.first[row] : cache.length].transpose(0, 1), wanted)


def test_reading_is_the_same_without_native_kernels(model, monkeypatch):
    sequences, since = family(2)
    ready = states(model, sequences, since, 80)
    for module in ("attention", "operators", "prefix"):
        monkeypatch.setattr(f"ahkio.model.{module}.native.ready", lambda x: False)
    assert all(itertools.starmap(close, zip(ready, states(model, sequences, since, 80), strict=True)))
