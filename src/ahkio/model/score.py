"""How likely a model finds given tokens: whole documents, and what may follow a context."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ahkio.model import native
from ahkio.model.llama import Llama
from ahkio.model.prefix import read_shared

ROWS, TILE = 1024, 2048  # of the logits at hand at a time: they stay in a CPU's cache

Window = tuple[int, list[int]]  # (document, tokens); all but the first of the tokens are scored


def document_losses(
    model: Llama, documents: Sequence[Sequence[int]], context: int, tokens_per_batch: int = 4096
) -> list[list[float]]:
    """For each document the negative log-likelihood in nats of its tokens from the second on.

    A document longer than `context` + 1 tokens is read in windows that do not overlap but for one token, which is only
    context (lm-eval's rolling log-likelihood). Windows of many documents are packed into one forward pass.
    """
    windows = list(_windows(documents, context))
    losses: list[list[float]] = [[] for _ in documents]
    scored = [(tokens[:1], tokens[1:]) for _, tokens in windows]
    for (document, _), (found, _) in zip(windows, _losses(model, scored, tokens_per_batch), strict=True):
        losses[document].extend(found.tolist())
    return losses


def _windows(documents: Sequence[Sequence[int]], context: int) -> Iterator[Window]:
    for document, tokens in enumerate(documents):
        for start in range(0, len(tokens) - 1, context):
            yield document, [int(token) for token in tokens[start : start + context + 1]]


def continuation_losses(
    model: Llama, requests: Sequence[tuple[Sequence[int], Sequence[int]]], tokens_per_batch: int = 4096
) -> list[tuple[float, bool]]:
    """Negative log-likelihood in nats of each continuation after its context; whether greedy decoding would give it.

    Both have at least one token. What requests begin with alike is read once, be it a context with several
    continuations or the examples at the head of many contexts.
    """
    return [(losses.sum().item(), bool(greedy.all())) for losses, greedy in _losses(model, requests, tokens_per_batch)]


@torch.no_grad()
def _losses(
    model: Llama, requests: Sequence[tuple[Sequence[int], Sequence[int]]], tokens_per_batch: int
) -> list[tuple[Tensor, Tensor]]:
    """For each (context, continuation) the loss of each token of the continuation, and whether it is the likeliest."""
    if not requests:
        return []
    device = model.embed.weight.device
    found: dict[int, tuple[Tensor, Tensor]] = {}
    read = [[*context, *continuation[:-1]] for context, continuation in requests]
    since = [len(context) - 1 for context, _ in requests]
    for numbers, states in read_shared(model, read, since, tokens_per_batch):
        labels = torch.tensor([token for number in numbers for token in requests[number][1]], device=device)
        losses, greedy = label_losses(torch.cat(states), model.head_weight, labels)
        sizes = [len(x_TD) for x_TD in states]
        found |= zip(numbers, zip(losses.split(sizes), greedy.split(sizes), strict=True), strict=True)
    return [found[number] for number in range(len(requests))]


@torch.no_grad()
def label_losses(x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of each label, fp32 (N,), and whether no other token is likelier, bool (N,)."""
    pieces = [_tiled(x, weight_VD, labels) for x, labels in zip(x_ND.split(ROWS), labels_N.split(ROWS), strict=True)]
    losses, greedy = zip(*pieces, strict=True)
    return torch.cat(losses), torch.cat(greedy)


def _tiled(x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax in parts of the vocabulary, one after another."""
    top_N = x_ND.new_full(labels_N.shape, -torch.inf, dtype=torch.float32)
    total_N, chosen_N = torch.zeros_like(top_N), torch.zeros_like(top_N)
    room = x_ND.new_empty(len(x_ND) * TILE)
    for first, weight in zip(range(0, len(weight_VD), TILE), weight_VD.split(TILE), strict=True):
        logits = room[: len(x_ND) * len(weight)].view(len(x_ND), len(weight))
        torch.mm(x_ND, weight.T.to(x_ND.dtype), out=logits)
        meet = native_scores if native.ready(logits) else plain_scores
        meet(logits, labels_N, first, top_N, total_N, chosen_N)
    return total_N.log_() + (top_N - chosen_N), chosen_N >= top_N


def native_scores(
    logits_NV: Tensor, labels_N: Tensor, first: int, top_N: Tensor, total_N: Tensor, chosen_N: Tensor
) -> None:
    """Take logits of the tokens from `first` on into each row's largest logit, its sum of exponentials below that one,
    and its label's logit."""
    native.call("label_scores", logits_NV.dtype, *logits_NV.shape, first, logits_NV, labels_N, top_N, total_N, chosen_N)


def plain_scores(
    logits_NV: Tensor, labels_N: Tensor, first: int, top_N: Tensor, total_N: Tensor, chosen_N: Tensor
) -> None:
    """What native_scores does, in PyTorch; the logits may change."""
    logits_NV = logits_NV.float()
    here = ((labels_N >= first) & (labels_N < first + logits_NV.shape[1])).nonzero()[:, 0]
    chosen_N[here] = logits_NV[here, labels_N[here] - first]
    before_N = top_N.clone()
    torch.maximum(top_N, logits_NV.amax(-1), out=top_N)
    total_N.mul_((before_N - top_N).exp_()).add_(logits_NV.sub_(top_N[:, None]).exp_().sum(-1))
