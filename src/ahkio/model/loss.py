"""The vocabulary loss, in chunks: logits of all tokens are never held at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel

from ahkio.model.operators import softmax_loss_
from ahkio.model.shape import chunk_rows

IGNORE = -100  # a label that is not trained on


def token_losses(x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each label, fp32 (N,); 0 where the label is IGNORE. Gives no gradient."""
    weight_VD = weight_VD.detach().to(x_ND.dtype)
    with torch.no_grad():
        rows = chunk_rows(len(weight_VD))
        pieces = [
            F.cross_entropy(F.linear(x, weight_VD).float(), labels, ignore_index=IGNORE, reduction="none")
            for x, labels in zip(x_ND.split(rows), labels_N.split(rows), strict=True)
        ]
    return torch.cat(pieces)


def summed_loss(x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum in nats of the negative log-likelihood of all labels that are not IGNORE, an fp32 scalar.

    Products are in the dtype of `x_ND`; the softmax and the gradient of the weight are in fp32. Where ranks hold parts
    of the vocabulary, `weight_VD` is a DTensor; each gets the whole sum.
    """
    trained = (labels_N != IGNORE).nonzero()[:, 0]
    ranks = weight_VD.device_mesh if isinstance(weight_VD, DTensor) else None
    if isinstance(weight_VD, DTensor):
        weight_VD = weight_VD.to_local()
    total: Tensor = _SummedLoss.apply(x_ND[trained], weight_VD, labels_N[trained], ranks)
    return total


class _SummedLoss(torch.autograd.Function):
    """The gradients are made on the way forward, chunk by chunk, while the logits are at hand; backward scales them."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, ranks: DeviceMesh | None) -> Tensor:
        w_VD = weight_VD.to(x_ND.dtype)
        dx_ND = torch.empty_like(x_ND)
        dw_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        rows = chunk_rows(len(w_VD))
        for x, labels, dx in zip(x_ND.split(rows), labels_N.split(rows), dx_ND.split(rows), strict=True):
            logits = F.linear(x, w_VD)
            losses, dlogits = softmax_loss_(logits, labels) if ranks is None else split_loss(logits, labels, ranks)
            total += losses.sum()
            torch.mm(dlogits, w_VD, out=dx)
            if dw_VD.dtype == x.dtype:
                dw_VD.addmm_(dlogits.T, x)
            else:
                dw_VD += dlogits.T @ x
        ctx.save_for_backward(dx_ND, dw_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx_ND, dw_VD = ctx.saved_tensors
        return dx_ND.mul_(grads[0]), dw_VD.mul_(grads[0]).to(ctx.weight_dtype), None, None


def split_loss(logits_NV: Tensor, labels_N: Tensor, ranks: DeviceMesh) -> tuple[Tensor, Tensor]:
    """As softmax_loss_, summed, where each of `ranks` has its part of the vocabulary: torch's loss_parallel."""
    whole = DTensor.from_local(logits_NV.float(), ranks, [Shard(1)]).requires_grad_()
    with torch.enable_grad(), loss_parallel():
        total = F.cross_entropy(whole, labels_N, reduction="sum")
        (gradient,) = torch.autograd.grad(total, whole)
    assert isinstance(total, DTensor)
    assert isinstance(gradient, DTensor)
    return total.to_local().detach(), gradient.to_local().to(logits_NV.dtype)
