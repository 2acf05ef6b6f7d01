import math

import pytest
import torch
import torch.nn.functional as F
from tiny_llama import close

from ahkio.model import attention, native

LENGTHS = (5, 1, 12, 1, 1, 7)
HEADS = {"as many": (4, 4), "grouped": (4, 2), "one for all": (6, 1)}


@pytest.fixture(params=["native", "plain"], autouse=True)
def kernels(request, monkeypatch):
    """Every promise is kept by the kernels of native.cpp and by PyTorch alone."""
    if request.param == "plain":
        monkeypatch.setattr(native, "ready", lambda x: False)
    elif native.library() is None:
        pytest.skip("no C++ compiler to build the native kernels with")


def attend_documents(q_NHE, k_NKE, v_NKE, bounds, longest):
    """Attention whose positions turn nothing."""
    still = torch.zeros(2, len(q_NHE), q_NHE.shape[2] // 2, device=q_NHE.device)
    still[0] = 1
    return attention.attend_documents(q_NHE, k_NKE, v_NKE, still, bounds, longest)


def bounds_of(lengths, device="cpu"):
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def inputs(heads, kv_heads, width=32, lengths=LENGTHS, **options):
    torch.manual_seed(0)
    shapes = [(sum(lengths), count, width) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, **options).requires_grad_() for shape in shapes]


def plain_attention(q_NHE, k_NKE, v_NKE, lengths):
    """Masked softmax over all tokens at once, written out: the definition."""
    group = q_NHE.shape[1] // k_NKE.shape[1]
    k_NHE, v_NHE = (x.repeat_interleave(group, 1) for x in (k_NKE, v_NKE))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q_NHE.device)
    place = torch.arange(len(document), device=q_NHE.device)
    visible = (document[:, None] == document) & (place[:, None] >= place)
    scores = torch.einsum("nhe,mhe->hnm", q_NHE, k_NHE) / math.sqrt(q_NHE.shape[2])
    return torch.einsum("hnm,mhe->nhe", scores.masked_fill(~visible, -torch.inf).softmax(-1), v_NHE)


def with_gradients(attend, parts, dy):
    y = attend(*parts)
    return [y, *torch.autograd.grad(y, parts, dy)]


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS.values(), ids=HEADS)
def test_packed_documents_attend_as_a_masked_softmax_forward_and_backward(heads, kv_heads):
    parts = inputs(heads, kv_heads)
    dy, bounds = torch.randn_like(parts[0]), bounds_of(LENGTHS)
    mine = with_gradients(lambda *p: attend_documents(*p, bounds, max(LENGTHS)), parts, dy)
    wanted = with_gradients(lambda *p: plain_attention(*p, LENGTHS), parts, dy)
    assert all(close(a, b) for a, b in zip(mine, wanted, strict=True))


def test_packed_documents_equal_torch_attention_of_each_alone():
    q, k, v = inputs(4, 2)
    y = attend_documents(q, k, v, bounds_of(LENGTHS), max(LENGTHS))
    for piece in zip(*(x.split(LENGTHS) for x in (q, k, v, y)), strict=True):
        *parts, mine = (x.transpose(0, 1)[None] for x in piece)
        assert close(mine, F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True))


def test_changing_one_document_leaves_the_others_bit_equal():
    parts = inputs(4, 2)
    changed = [x.detach().clone() for x in parts]
    for x in changed:
        x[6:18] = 100 * torch.randn_like(x[6:18])  # the third document
    before, after = (attend_documents(*p, bounds_of(LENGTHS), 12) for p in (parts, changed))
    same = (before == after).flatten(1).all(1)
    assert same[:6].all()
    assert same[18:].all()
    assert not same[6:18].any()


def test_a_loss_on_one_document_gives_the_others_no_gradient():
    parts = inputs(4, 2)
    attend_documents(*parts, bounds_of(LENGTHS), 12)[6:18].square().sum().backward()
    for x in parts:
        rows = x.grad.flatten(1).abs().amax(1)
        assert not rows[:6].any()
        assert not rows[18:].any()
        assert rows[6:18].any()


def test_no_token_sees_a_later_one():
    parts = inputs(2, 2)
    changed = [x.detach().clone() for x in parts]
    for x in changed:
        x[17:] += 1
    before, after = (attend_documents(*p, bounds_of((26, 1)), 26) for p in (parts, changed))
    assert torch.equal(before[:17], after[:17])


def test_strided_inputs_and_gradients_are_read_rightly():
    parts = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs(4, 2)]
    dy = torch.randn(32, 4, sum(LENGTHS)).permute(2, 1, 0)
    mine = with_gradients(lambda *p: attend_documents(*p, bounds_of(LENGTHS), 12), parts, dy)
    wanted = with_gradients(lambda *p: plain_attention(*p, LENGTHS), parts, dy)
    assert all(close(a, b) for a, b in zip(mine, wanted, strict=True))


def test_bf16_keeps_its_dtype_and_is_right_to_its_rounding():
    lengths = (63, 1, 130, 7)
    parts = inputs(4, 2, 64, lengths, dtype=torch.bfloat16)
    dy = torch.randn_like(parts[0])
    mine = with_gradients(lambda *p: attend_documents(*p, bounds_of(lengths), 130), parts, dy)
    assert all(x.dtype == torch.bfloat16 for x in mine)
    exact = [x.detach().float().requires_grad_() for x in parts]
    wanted = with_gradients(lambda *p: plain_attention(*p, lengths), exact, dy.float())
    assert all(close(a.float(), b, 2e-2) for a, b in zip(mine, wanted, strict=True))


@pytest.mark.parametrize("lengths", [(63, 64, 65), (1, 200), (130, 3, 127, 1)], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS.values(), ids=HEADS)
def test_documents_of_any_length_with_turned_heads_attend_as_a_masked_softmax(heads, kv_heads, lengths):
    parts = inputs(heads, kv_heads, 64, lengths)
    dy, bounds = torch.randn_like(parts[0]), bounds_of(lengths)
    phase = 100 * torch.rand(sum(lengths), 32)
    rope = torch.stack((phase.cos(), phase.sin()))
    mine = with_gradients(lambda *p: attention.attend_documents(*p, rope, bounds, max(lengths)), parts, dy)
    exact = [x.detach().double().requires_grad_() for x in parts]
    wanted = with_gradients(
        lambda q, k, v: plain_attention(turned(q, phase), turned(k, phase), v, lengths), exact, dy.double()
    )
    assert all(close(a.double(), b) for a, b in zip(mine, wanted, strict=True))


def turned(x_NHE, phase):
    """Each pair of dimensions E/2 apart as a complex number, times e to the i phase."""
    a, b = x_NHE.chunk(2, -1)
    y = torch.complex(a, b) * torch.polar(torch.ones_like(phase), phase).to(torch.complex128)[:, None]
    return torch.cat((y.real, y.imag), -1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_compiled_graph_serves_other_documents(backend):
    graphs = []
    real = torch._dynamo.lookup_backend(backend)

    def counting(graph, example):
        graphs.append(graph)
        return real(graph, example)

    @torch.compile(backend=counting, fullgraph=True, dynamic=False)
    def attend(q, k, v, bounds):
        return 2 * attend_documents(q, k, v, bounds, 27)

    torch._dynamo.reset()
    parts = inputs(4, 2)
    for lengths in (LENGTHS, (12, 5, 1, 1, 7, 1), (1, 1, 1, 1, 1, 22)):
        dy, bounds = torch.randn_like(parts[0]), bounds_of(lengths)
        mine = with_gradients(lambda *p, b=bounds: attend(*p, b), parts, dy)
        wanted = with_gradients(lambda *p, n=lengths: 2 * plain_attention(*p, n), parts, dy)
        assert all(close(a, b) for a, b in zip(mine, wanted, strict=True))
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS.values(), ids=HEADS)
def test_on_a_gpu_bf16_packed_attention_equals_each_document_alone(heads, kv_heads):
    lengths = (130, 1, 64, 257, 1)
    parts = inputs(heads, kv_heads, 64, lengths, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn_like(parts[0])
    mine = with_gradients(lambda *p: attend_documents(*p, bounds_of(lengths, "cuda"), 257), parts, dy)
    exact = [x.detach().float().requires_grad_() for x in parts]
    wanted = with_gradients(lambda *p: plain_attention(*p, lengths), exact, dy.float())
    assert all(close(a.float(), b, 2e-2) for a, b in zip(mine, wanted, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_fp32_packed_attention_equals_each_document_alone():
    lengths = (33, 1, 64)
    parts = inputs(4, 2, 16, lengths, device="cuda")
    y = attend_documents(*parts, bounds_of(lengths, "cuda"), 64)
    assert close(y, plain_attention(*parts, lengths), 1e-4)
