"""Causal attention over packed documents that does no work across them, and attention against a key/value cache.

Tokens lie end to end, N of them; `bounds` (int32, documents + 1) says where each document begins and the last one ends.
H query heads, K key/value heads, E head width. One place chooses the kernel:

| where                 | kernel                                                              |
|-----------------------|---------------------------------------------------------------------|
| CPU                   | torch's flash kernel, once per document, as one opaque operator     |
| CUDA, 16-bit          | torch's variable-length flash attention                             |
| anything else         | torch's scaled_dot_product_attention, once per document             |
"""

import inspect
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

VARLEN_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # since torch 2.12
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_documents(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Causal attention within each document. `longest` is at least the longest document's length, in tokens."""
    if q_NHE.device.type == "cpu":
        y_NHE: Tensor = document_attention(q_NHE, k_NKE, v_NKE, bounds)[0]
        return y_NHE
    if q_NHE.dtype in (torch.bfloat16, torch.float16):
        groups: dict[str, Any] = {"enable_gqa": True} if VARLEN_GROUPS else {}
        k, v = (x if VARLEN_GROUPS else _repeated(x, q_NHE.shape[1]) for x in (k_NKE, v_NKE))
        y = varlen_attn(q_NHE, k, v, bounds, bounds, longest, longest, window_size=(-1, 0), **groups)
        assert isinstance(y, Tensor)
        return y
    pieces = [
        F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v), is_causal=True, enable_gqa=True)
        for q, k, v in zip(*(x.split(bounds.diff().tolist()) for x in (q_NHE, k_NKE, v_NKE)), strict=True)
    ]
    return torch.cat([piece[0].transpose(0, 1) for piece in pieces])


def attend_cached(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, visible_BTS: Tensor) -> Tensor:
    """Attention of T new tokens to S cached ones (the new among them), where `visible_BTS` allows it."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHE, k_BSKE, v_BSKE))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible_BTS[:, None], enable_gqa=True).transpose(1, 2)


def _heads(x_THE: Tensor) -> Tensor:
    return x_THE.transpose(0, 1)[None]


def _repeated(x_THE: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated to `heads`, for kernels that know no grouped queries."""
    return x_THE.repeat_interleave(heads // x_THE.shape[1], dim=1)


@torch.library.custom_op("ahkio::document_attention", mutates_args=())
def document_attention(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The attended values (N, H, E) and, for the backward pass, the log-sum-exp of each row (N, H) in fp32.

    One operator, so that torch.compile neither unrolls the documents nor compiles anew for each batch's lengths.
    """
    y_NHE = torch.empty_like(q_NHE, memory_format=torch.contiguous_format)
    lse_NH = torch.empty(q_NHE.shape[:2], dtype=torch.float32)
    for start, end in _spans(bounds):
        k, v = (_heads(_repeated(x[start:end], q_NHE.shape[1])) for x in (k_NKE, v_NKE))
        y, lse = _flash(_heads(q_NHE[start:end]), k, v, 0.0, True)
        y_NHE[start:end] = y[0].transpose(0, 1)
        lse_NH[start:end] = lse[0].transpose(0, 1)
    return y_NHE, lse_NH


@document_attention.register_fake
def _(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    y_NHE = torch.empty_like(q_NHE, memory_format=torch.contiguous_format)
    return y_NHE, q_NHE.new_empty(q_NHE.shape[:2], dtype=torch.float32)


@torch.library.custom_op("ahkio::document_attention_backward", mutates_args=())
def document_attention_backward(
    dy_NHE: Tensor, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, y_NHE: Tensor, lse_NH: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_NHE, k_NKE, v_NKE)]
    for start, end in _spans(bounds):
        k, v = (_heads(_repeated(x[start:end], q_NHE.shape[1])) for x in (k_NKE, v_NKE))
        dy, q, y = (_heads(x[start:end]) for x in (dy_NHE, q_NHE, y_NHE))
        lse = lse_NH[start:end].transpose(0, 1)[None]
        for grad, piece in zip(grads, _flash_backward(dy, q, k, v, y, lse, 0.0, True), strict=True):
            # (1, H, T, E) -> (T, heads of this gradient, queries that share one, E), summed over those
            grad[start:end] = piece[0].transpose(0, 1).unflatten(1, (grad.shape[1], -1)).sum(2)
    return grads[0], grads[1], grads[2]


@document_attention_backward.register_fake
def _(
    dy_NHE: Tensor, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, y_NHE: Tensor, lse_NH: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_NHE, k_NKE, v_NKE))
    return q, k, v


def _spans(bounds: Tensor) -> list[tuple[int, int]]:
    edges = bounds.tolist()
    return [(start, end) for start, end in itertools.pairwise(edges) if end > start]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch's own signature is untyped
    q_NHE, k_NKE, v_NKE, bounds = inputs
    ctx.save_for_backward(q_NHE, k_NKE, v_NKE, *output, bounds)


def _backward(ctx, dy_NHE: Tensor, _lse: Tensor):  # type: ignore[no-untyped-def]  # as above
    return *document_attention_backward(dy_NHE.contiguous(), *ctx.saved_tensors), None


document_attention.register_autograd(_backward, setup_context=_keep)
