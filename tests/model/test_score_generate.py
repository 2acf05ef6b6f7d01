import pytest
import torch
from tiny_llama import KINDS, documents, pair

from ahkio.model.generate import generate
from ahkio.model.score import continuation_losses, document_losses


@pytest.fixture(scope="module", params=["tied", "llama3 scaling"])
def models(request, tmp_path_factory):
    return pair(tmp_path_factory.mktemp("model"), **KINDS[request.param])


def exact_losses(theirs, ids):
    """Each token's loss from the second on, by transformers."""
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def test_losses_are_those_of_transformers_however_documents_are_packed(models):
    ours, theirs = models
    texts = documents(9, 1, 30, 2, 17)
    for tokens_per_batch in (1, 32, 4096):
        found = document_losses(ours, texts, 1000, tokens_per_batch)
        for mine, text in zip(found, texts, strict=True):
            assert mine == pytest.approx(exact_losses(theirs, text) if len(text) > 1 else [], rel=1e-4, abs=1e-4)


def test_a_long_document_is_read_in_windows_that_score_each_token_once(models):
    ours, theirs = models
    (text,) = documents(23)
    (found,) = document_losses(ours, [text], 10)
    windows = [text[start : start + 11] for start in (0, 10, 20)]
    assert found == pytest.approx([loss for window in windows for loss in exact_losses(theirs, window)], rel=1e-4)
    assert len(found) == 22


def test_choices_cost_what_they_cost_behind_their_context(models):
    ours, _ = models
    context, *choices = documents(8, 3, 1, 5, 3)
    sums = [loss for loss, _ in continuation_losses(ours, [(context, choice) for choice in choices])]
    whole = document_losses(ours, [context + choice for choice in choices], 1000)
    wanted = [sum(losses[-len(choice) :]) for losses, choice in zip(whole, choices, strict=True)]
    assert sums == pytest.approx(wanted, rel=1e-5)
    assert continuation_losses(ours, [(context, choices[1])])[0][0] == pytest.approx(wanted[1], rel=1e-5)


def test_a_choice_is_greedy_if_generation_would_write_it(models):
    ours, _ = models
    context, other = documents(8, 4)
    (written,) = generate(ours, [context], 4, set())
    found = continuation_losses(ours, [(context, choice) for choice in (other, written, written[:1])])
    assert [greedy for _, greedy in found] == [False, True, True]


def test_greedy_text_is_that_of_transformers_for_prompts_of_different_lengths(models):
    ours, theirs = models
    prompts = documents(5, 1, 19, 8)
    together = generate(ours, prompts, 12, set())
    for prompt, mine in zip(prompts, together, strict=True):
        wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert mine == wanted[0, len(prompt) :].tolist()


def test_sampling_is_the_same_for_the_same_seed(models):
    ours, _ = models
    prompts = documents(5, 9)
    first, again, other = (generate(ours, prompts, 20, set(), temperature=1.0, seed=s) for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_low_temperature_is_greedy(models):
    ours, _ = models
    prompts = documents(5, 9)
    assert generate(ours, prompts, 8, set(), temperature=1e-4) == generate(ours, prompts, 8, set())


def test_a_row_ends_before_its_stop_token_and_the_others_go_on(models):
    ours, _ = models
    prompts = documents(5, 9)
    free = generate(ours, prompts, 10, set())
    stop = next(token for token in free[0][1:] if token not in free[0][:1])
    cut = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate(ours, prompts, 10, {stop}) == cut


def test_until_ends_a_row_with_what_it_said_yes_to(models):
    ours, _ = models
    prompts = documents(5, 9)
    free = generate(ours, prompts, 10, set())
    assert generate(ours, prompts, 10, set(), until=lambda ids: len(ids) == 3) == [row[:3] for row in free]
    assert generate(ours, prompts, 10, set(), until=lambda ids: ids == free[1][: len(ids)] and len(ids) == 2) == [
        free[0] if free[0][:2] != free[1][:2] else free[0][:2],
        free[1][:2],
    ]
