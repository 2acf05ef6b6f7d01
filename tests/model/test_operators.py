import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from tiny_llama import close

from ahkio.model import native
from ahkio.model.llama import random_model
from ahkio.model.loss import summed_loss
from ahkio.model.operators import gated, rms_norm, softmax_loss_
from ahkio.model.shape import LlamaConfig

SMALL = LlamaConfig(layers=2, width=64, heads=4, kv_heads=2, head_width=32, ffn=96, vocab=96, tied=True)
DTYPES = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}


@pytest.fixture(params=["native", "plain"])
def kernels(request, monkeypatch):
    """Every promise is kept by the kernels of native.cpp and by PyTorch alone."""
    if request.param == "plain":
        monkeypatch.setattr(native, "ready", lambda x: False)
    elif native.library() is None:
        pytest.skip("no C++ compiler to build the native kernels with")


def gradients(function, *parts):
    y = function(*parts)
    torch.manual_seed(1)
    return [y, *torch.autograd.grad(y, parts, torch.randn_like(y))]


def exact(*parts):
    return [x.detach().double().requires_grad_() for x in parts]


def all_close(mine, wanted, bound):
    return all(close(a.double(), b.double(), bound) for a, b in zip(mine, wanted, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), DTYPES.values(), ids=DTYPES)
@pytest.mark.usefixtures("kernels")
def test_the_norm_is_rms_norm_forward_and_backward(dtype, bound):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 7, 96).to(dtype).requires_grad_(), torch.randn(96, requires_grad=True)
    mine = gradients(lambda x, w: rms_norm(x, w, 1e-3), x, weight)
    torch.manual_seed(1)
    dy = torch.randn_like(mine[0]).double()
    x64, w64 = exact(x, weight)
    y64 = F.rms_norm(x64, (96,), w64, 1e-3)
    assert mine[0].dtype == dtype
    assert mine[2].dtype == torch.float32
    assert all_close(mine, [y64, *torch.autograd.grad(y64, (x64, w64), dy)], bound)


@pytest.mark.parametrize(("dtype", "bound"), DTYPES.values(), ids=DTYPES)
@pytest.mark.usefixtures("kernels")
def test_the_gate_is_silu_times_up_forward_and_backward(dtype, bound):
    torch.manual_seed(0)
    gate, up = (8 * torch.randn(9, 64)).to(dtype).requires_grad_(), torch.randn(9, 64).to(dtype).requires_grad_()
    mine = gradients(gated, gate, up)
    torch.manual_seed(1)
    dy = torch.randn_like(mine[0]).double()
    g64, u64 = exact(gate, up)
    y64 = F.silu(g64) * u64
    assert all_close(mine, [y64, *torch.autograd.grad(y64, (g64, u64), dy)], bound)


@pytest.mark.parametrize(("dtype", "bound"), DTYPES.values(), ids=DTYPES)
@pytest.mark.usefixtures("kernels")
def test_the_loss_and_its_gradient_are_those_of_cross_entropy(dtype, bound):
    torch.manual_seed(0)
    logits, labels = (5 * torch.randn(11, 96)).to(dtype), torch.randint(96, (11,))
    (logits64,) = exact(logits)
    wanted = F.cross_entropy(logits64, labels, reduction="none")
    (gradient,) = torch.autograd.grad(wanted.sum(), logits64)
    losses, mine = softmax_loss_(logits.clone(), labels)
    assert losses.dtype == torch.float32
    assert close(losses.double(), wanted, 1e-5)
    assert mine.dtype == dtype
    assert close(mine.double(), gradient, bound)


@pytest.mark.usefixtures("kernels")
def test_a_loss_far_from_zero_neither_overflows_nor_loses_its_gradient():
    logits = torch.tensor([[3e4, -3e4] + [0.0] * 30, [-1e5] * 32])
    losses, gradient = softmax_loss_(logits, torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([6e4, torch.log(torch.tensor(32.0)).item()])
    assert gradient.isfinite().all()


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler to build the native kernels with")
def test_a_model_learns_the_same_from_native_kernels_as_from_torch(monkeypatch):
    torch.manual_seed(0)
    ids, labels = torch.randint(96, (2, 150)), torch.randint(96, (300,))
    positions, bounds = torch.arange(150).expand(2, -1), torch.tensor([0, 150, 220, 300], dtype=torch.int32)

    def learnt():
        model = random_model(SMALL, 0)
        x = model(ids, positions, bounds, 150).flatten(0, 1)
        loss = summed_loss(x, model.head_weight, labels)
        loss.backward()
        return [loss.detach(), *(weight.grad for weight in model.parameters())]

    mine = learnt()
    monkeypatch.setattr(native, "ready", lambda x: False)
    assert all(close(a, b) for a, b in zip(mine, learnt(), strict=True))


@pytest.fixture
def asked_anew():
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_without_a_compiler_or_when_told_so_torch_does_the_work(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not native.ready(torch.zeros(2, 32))
    native.library.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("AHKIO_NATIVE", "0")
    assert not native.ready(torch.zeros(2, 32))


@pytest.mark.usefixtures("asked_anew")
def test_a_compiler_that_fails_and_a_cache_that_cannot_be_written_leave_the_work_to_torch(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert native.library() is None
    native.library.cache_clear()
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.library() is None


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_kernels_are_built_once_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library() is not None
    (built,) = (tmp_path / "ahkio").iterdir()
    stamp = built.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library() is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "ahkio").iterdir()] == [stamp]
