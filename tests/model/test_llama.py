import dataclasses

import pytest
import torch
from tiny_llama import KINDS, VOCAB, close, documents, logits, one, packed, pair, write

from ahkio.model.hub import load_model
from ahkio.model.llama import random_model
from ahkio.model.loss import summed_loss
from ahkio.model.shape import read_config


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(tmp_path, kind):
    ours, theirs = pair(tmp_path, **KINDS[kind])
    (ids,) = documents(40)
    for start in (0, 500, 8000):
        batch = one(ids, start)
        with torch.no_grad():
            wanted = theirs(batch[0], position_ids=batch[1]).logits
            assert close(logits(ours, *batch), wanted, 2e-5 if start == 8000 else 1e-5)


def test_rope_scaling_shows_in_the_logits(tmp_path):
    """So that the test above would notice if it were lost."""
    ours, _ = pair(tmp_path, **KINDS["llama3 scaling"])
    plain = load_model(tmp_path)
    plain.config = dataclasses.replace(ours.config, rope_scaling=None)
    batch = one(documents(40)[0], 500)
    assert not close(logits(plain, *batch), logits(ours, *batch), 1e-2)


def test_gradients_equal_those_of_transformers(tmp_path):
    ours, theirs = pair(tmp_path)
    (ids,) = documents(30)
    labels = torch.tensor([*ids[1:], -100])
    theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    (summed_loss(ours(*one(ids))[0], ours.head_weight, labels) / 29).backward()
    wanted = dict(theirs.named_parameters())
    assert close(ours.embed.weight.grad, wanted["model.embed_tokens.weight"].grad)
    for name in ("q", "k", "v", "o"):
        mine = getattr(ours.blocks[0].attention, name).weight.grad
        assert close(mine, wanted[f"model.layers.0.self_attn.{name}_proj.weight"].grad)
    assert close(ours.norm.weight.grad, wanted["model.norm.weight"].grad)


def test_packed_documents_give_what_each_gives_alone(tmp_path):
    ours, theirs = pair(tmp_path)
    texts = documents(7, 1, 20, 1, 3)
    with torch.no_grad():
        together = logits(ours, *packed(texts))[0].split([len(text) for text in texts])
        for mine, text in zip(together, texts, strict=True):
            assert close(mine, logits(ours, *one(text))[0], 2e-6)
            assert close(mine, theirs(torch.tensor([text])).logits[0])


def test_rows_of_a_batch_do_not_see_each_other(tmp_path):
    ours = load_model(write(tmp_path))
    first, second, third = documents(10, 10, 10)
    bounds, positions = torch.tensor([0, 10, 20]).int(), torch.arange(10).repeat(2, 1)
    both, other = (ours(torch.tensor([first, row]), positions, bounds, 10) for row in (second, third))
    assert torch.equal(both[0], other[0])
    assert not torch.equal(both[1], other[1])


def test_bf16_computes_in_bf16_and_learns_in_fp32(tmp_path):
    write(tmp_path)
    exact, rounded = load_model(tmp_path), load_model(tmp_path, compute=torch.bfloat16)
    (ids,) = documents(30)
    x = rounded(*one(ids))
    assert x.dtype == torch.bfloat16
    assert rounded.logits(x).dtype == torch.float32
    assert close(logits(rounded, *one(ids)), logits(exact, *one(ids)), 5e-2)
    summed_loss(x[0], rounded.head_weight, torch.tensor(ids)).backward()
    assert {weight.grad.dtype for weight in rounded.parameters()} == {torch.float32}


def test_recomputing_changes_neither_loss_nor_gradients(tmp_path):
    write(tmp_path)
    batch, gradients, totals = packed(documents(9, 21)), [], []
    for recompute in ("none", "block", "selective"):
        model = load_model(tmp_path, recompute=recompute)
        total = summed_loss(model(*batch)[0], model.head_weight, batch[0][0])
        total.backward()
        totals.append(total.item())
        gradients.append([weight.grad for weight in model.parameters()])
    assert totals[0] == totals[1] == totals[2]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))


def test_compiled_blocks_need_no_new_graph_for_other_documents(tmp_path):
    write(tmp_path)
    plain, compiled = load_model(tmp_path), load_model(tmp_path)
    graphs = []
    torch._dynamo.reset()
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for lengths in ((9, 21), (1, 12, 17), (30,), (3, 3, 3, 3, 18), (1,) * 30):
        ids, positions, bounds, _ = packed(documents(*lengths))
        assert close(logits(compiled, ids, positions, bounds, 30), logits(plain, ids, positions, bounds, 30))
    assert len(graphs) <= 2 * len(compiled.blocks)  # one for the first shape, one for any


def test_parameters_are_counted_as_they_are(tmp_path):
    for kind in ("tied", "untied", "wide heads"):
        model = load_model(write(tmp_path / kind, **KINDS[kind]))
        assert model.config.parameters == sum(weight.numel() for weight in model.parameters())


def test_flops_count_each_product_and_causal_attention(tmp_path):
    """Products by torch's own counter, which cannot see into our attention; backward is twice forward."""
    from torch.utils.flop_counter import FlopCounterMode

    model, length = load_model(write(tmp_path)), 32
    c = model.config
    with FlopCounterMode(display=False) as counter:
        logits(model, *one(documents(length)[0]))
    attention = 4 * c.layers * c.heads * c.head_width * length * length / 2
    assert c.flops_per_token(length) * length == pytest.approx(3 * (counter.get_total_flops() + attention))


def test_the_same_seed_makes_the_same_random_model(tmp_path):
    c = read_config(write(tmp_path))
    first, again, other = (random_model(c, seed).embed.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.gpu
def test_on_a_gpu_fp32_logits_equal_those_of_the_cpu(tmp_path):
    write(tmp_path)
    batch = packed(documents(9, 1, 40))
    here, there = load_model(tmp_path), load_model(tmp_path, device="cuda")
    with torch.no_grad():
        on_gpu = logits(there, *(x.cuda() if isinstance(x, torch.Tensor) else x for x in batch))
        assert on_gpu.shape[-1] == VOCAB
        assert close(on_gpu.cpu(), logits(here, *batch), 1e-4)
