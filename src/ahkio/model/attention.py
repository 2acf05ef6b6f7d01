"""Causal attention over packed documents that does no work across them.

Tokens lie end to end, N of them; `bounds` (int32, documents + 1) says where each document begins and the last one ends.
H query heads, K key/value heads, E head width. One place chooses the kernel:

| where                  | kernel                                                             |
|------------------------|--------------------------------------------------------------------|
| CPU, with a compiler   | native.cpp                                                         |
| CPU                    | torch's flash kernel, once per document                            |
| CUDA, 16-bit           | torch's variable-length flash attention                            |
| anything else          | torch's scaled_dot_product_attention, once per document            |

On a CPU both are one opaque operator, so that torch.compile neither unrolls the documents nor compiles anew for each
batch's lengths.
"""

import inspect
import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.attention.varlen import varlen_attn

from ahkio.model import native

VARLEN_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # since torch 2.12
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_documents(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor, longest: int
) -> Tensor:
    """Turn queries and keys by their positions' angles; then causal attention within each document.

    rope_2NP: cos and sin, fp32 (2, N, E / 2). longest: at least the longest document's length, in tokens.
    """
    if q_NHE.device.type == "cpu":
        y_NHE: Tensor = document_attention(q_NHE, k_NKE, v_NKE, rope_2NP, bounds)[0]
        return y_NHE
    q_NHE, k_NKE = rotate(q_NHE, rope_2NP), rotate(k_NKE, rope_2NP)
    if q_NHE.dtype in (torch.bfloat16, torch.float16):
        return _varlen(q_NHE, k_NKE, v_NKE, bounds, bounds, longest)
    pieces = [
        F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v), is_causal=True, enable_gqa=True)
        for q, k, v in zip(*(x.split(bounds.diff().tolist()) for x in (q_NHE, k_NKE, v_NKE)), strict=True)
    ]
    return torch.cat([piece[0].transpose(0, 1) for piece in pieces])


class Seen(NamedTuple):
    """Where each rank has a part of the tokens (context parallelism): what the stretches of its own may look at.

    A stretch lies in one document and looks at that document from its start to the stretch's own last token.
    """

    ranks: DeviceMesh
    places: Tensor  # int64: of what each stretch sees, where it is among all ranks' tokens laid end to end
    bounds: Tensor  # int32 (stretches + 1): what of `places` belongs to each


def attend_gathered(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor, longest: int, seen: Seen
) -> Tensor:
    """attend_documents where the tokens are some of all: keys and values are gathered from all ranks, as in Llama 3.

    bounds: of this rank's stretches. longest: at least the longest document's length.
    """
    q_NHE = rotate(q_NHE, rope_2NP)
    k_SKE, v_SKE = (_gathered(x, seen.ranks)[seen.places] for x in (rotate(k_NKE, rope_2NP), v_NKE))
    if q_NHE.device.type == "cuda" and q_NHE.dtype in (torch.bfloat16, torch.float16):
        return _varlen(q_NHE, k_SKE, v_SKE, bounds, seen.bounds, longest)
    pieces = []
    for (a, b), (first, last) in zip(_spans(bounds), _spans(seen.bounds), strict=True):
        q, k, v = _heads(q_NHE[a:b]), _heads(k_SKE[first:last]), _heads(v_SKE[first:last])
        mask = torch.ones(b - a, last - first, dtype=torch.bool, device=q.device).tril(last - first - (b - a))
        pieces.append(F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(pieces)


def _gathered(x_NKE: Tensor, ranks: DeviceMesh) -> Tensor:
    """All ranks' rows; backward each gets the sum of what all have for its own."""
    whole = DTensor.from_local(x_NKE, ranks, [Shard(0)]).redistribute(placements=[Replicate()])
    return whole.to_local(grad_placements=[Partial()])


def rotate(x_NHE: Tensor, rope_2NP: Tensor) -> Tensor:
    """Turn each pair of dimensions by its angle. Hugging Face keeps a pair's halves E/2 apart, so they turn there."""
    a, b = x_NHE.float().chunk(2, -1)
    cos, sin = rope_2NP[..., None, :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).type_as(x_NHE)


def _varlen(q_NHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, q_bounds: Tensor, k_bounds: Tensor, longest: int) -> Tensor:
    """The last query of each stretch sees the last of its keys."""
    groups: dict[str, Any] = {"enable_gqa": True} if VARLEN_GROUPS else {}
    k, v = (x if VARLEN_GROUPS else _repeated(x, q_NHE.shape[1]) for x in (k_SKE, v_SKE))
    y = varlen_attn(q_NHE, k, v, q_bounds, k_bounds, longest, longest, window_size=(-1, 0), **groups)
    assert isinstance(y, Tensor)
    return y


def _heads(x_THE: Tensor) -> Tensor:
    return x_THE.transpose(0, 1)[None]


def _repeated(x_THE: Tensor, heads: int) -> Tensor:
    """Key/value heads repeated to `heads`, for kernels that know no grouped queries."""
    return x_THE.repeat_interleave(heads // x_THE.shape[1], dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# On a CPU


@torch.library.custom_op("ahkio::document_attention", mutates_args=())
def document_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """The attended values (N, H, E), and what the backward pass needs of each row's softmax, (H, N) fp32."""
    attention = native_attention if native.ready(q_NHE) else plain_attention
    return attention(q_NHE, k_NKE, v_NKE, rope_2NP, bounds)


@document_attention.register_fake
def _(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    N, H, _ = q_NHE.shape
    return q_NHE.new_empty(q_NHE.shape), q_NHE.new_empty((H, N), dtype=torch.float32)


@torch.library.custom_op("ahkio::document_attention_backward", mutates_args=())
def document_attention_backward(
    dy_NHE: Tensor,
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    rope_2NP: Tensor,
    bounds: Tensor,
    y_NHE: Tensor,
    softmax_HN: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    backward = native_attention_backward if native.ready(q_NHE) else plain_attention_backward
    return backward(dy_NHE, q_NHE, k_NKE, v_NKE, rope_2NP, bounds, y_NHE, softmax_HN)


@document_attention_backward.register_fake
def _(
    dy_NHE: Tensor,
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    rope_2NP: Tensor,
    bounds: Tensor,
    y_NHE: Tensor,
    softmax_HN: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_NHE.new_empty(q_NHE.shape), k_NKE.new_empty(k_NKE.shape), v_NKE.new_empty(v_NKE.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch's own signature is untyped
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, dy_NHE: Tensor, _softmax: Tensor):  # type: ignore[no-untyped-def]  # as above
    return *document_attention_backward(dy_NHE.contiguous(), *ctx.saved_tensors), None, None


document_attention.register_autograd(_backward, setup_context=_keep)


def native_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """The attended values (N, H, E), and log2 of each row's sum of exponentials, (H, N) fp32."""
    y_NHE, lse_HN = q_NHE.new_empty(q_NHE.shape), torch.empty(q_NHE.shape[1], len(q_NHE))
    native.call("attention_forward", q_NHE.dtype, *_common(q_NHE, k_NKE, v_NKE, rope_2NP, bounds), y_NHE, lse_HN)
    return y_NHE, lse_HN


def native_attention_backward(
    dy_NHE: Tensor,
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    rope_2NP: Tensor,
    bounds: Tensor,
    y_NHE: Tensor,
    lse_HN: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v as they were before the rotation."""
    grads = q_NHE.new_empty(q_NHE.shape), k_NKE.new_empty(k_NKE.shape), v_NKE.new_empty(v_NKE.shape)
    common = _common(q_NHE, k_NKE, v_NKE, rope_2NP, bounds)
    native.call("attention_backward", q_NHE.dtype, *common, y_NHE, lse_HN, dy_NHE, *grads)
    return grads


def _common(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor) -> tuple[Tensor | int, ...]:
    """What both kernels are given first; of q, k and v each token's heads lie together, the tokens may lie apart."""
    q, k, v = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (q_NHE, k_NKE, v_NKE))
    cos_NP, sin_NP = rope_2NP.contiguous()
    sizes = (len(q), q.shape[1], k.shape[1], q.shape[2])
    return *sizes, q, k, v, q.stride(0), k.stride(0), v.stride(0), cos_NP, sin_NP, bounds, len(bounds) - 1


def plain_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, rope_2NP: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """What native_attention computes, in PyTorch; the second result is the natural logarithm here."""
    q_NHE, k_NKE = rotate(q_NHE, rope_2NP), rotate(k_NKE, rope_2NP)
    y_NHE, lse_HN = torch.empty_like(q_NHE), torch.empty(q_NHE.shape[1], len(q_NHE))
    for start, end in _spans(bounds):
        k, v = (_heads(_repeated(x[start:end], q_NHE.shape[1])) for x in (k_NKE, v_NKE))
        y, lse = _flash(_heads(q_NHE[start:end]), k, v, 0.0, True)
        y_NHE[start:end] = y[0].transpose(0, 1)
        lse_HN[:, start:end] = lse[0]
    return y_NHE, lse_HN


def plain_attention_backward(
    dy_NHE: Tensor,
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    rope_2NP: Tensor,
    bounds: Tensor,
    y_NHE: Tensor,
    lse_HN: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What native_attention_backward computes, in PyTorch, from what plain_attention gave."""
    grads = [torch.empty(x.shape, dtype=x.dtype) for x in (q_NHE, k_NKE, v_NKE)]
    q_NHE, k_NKE = rotate(q_NHE, rope_2NP), rotate(k_NKE, rope_2NP)
    for start, end in _spans(bounds):
        k, v = (_heads(_repeated(x[start:end], q_NHE.shape[1])) for x in (k_NKE, v_NKE))
        dy, q, y = (_heads(x[start:end]) for x in (dy_NHE, q_NHE, y_NHE))
        for grad, piece in zip(
            grads, _flash_backward(dy, q, k, v, y, lse_HN[None, :, start:end], 0.0, True), strict=True
        ):
            # (1, H, T, E) -> (T, heads of this gradient, queries that share one, E), summed over those
            grad[start:end] = piece[0].transpose(0, 1).unflatten(1, (grad.shape[1], -1)).sum(2)
    back_2NP = torch.stack((rope_2NP[0], -rope_2NP[1]))
    return rotate(grads[0], back_2NP), rotate(grads[1], back_2NP), grads[2]


def _spans(bounds: Tensor) -> list[tuple[int, int]]:
    edges = bounds.tolist()
    return [(start, end) for start, end in itertools.pairwise(edges) if end > start]
