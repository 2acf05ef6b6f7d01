"""How likely a model finds given tokens: whole documents packed end to end, and choices that share a context."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ahkio.model.cache import Cache
from ahkio.model.llama import Llama
from ahkio.model.loss import IGNORE, token_losses

Window = tuple[int, list[int]]  # (document, tokens); all but the first of the tokens are scored


def document_losses(
    model: Llama, documents: Sequence[Sequence[int]], context: int, tokens_per_batch: int = 4096
) -> list[list[float]]:
    """For each document the negative log-likelihood in nats of its tokens from the second on.

    A document longer than `context` + 1 tokens is read in windows that do not overlap but for one token, which is only
    context (lm-eval's rolling log-likelihood). Windows of many documents are packed into one forward pass.
    """
    losses: list[list[float]] = [[] for _ in documents]
    for batch in _packed(_windows(documents, context), tokens_per_batch):
        flat = _window_losses(model, [tokens for _, tokens in batch])
        for (document, _), found in zip(batch, flat, strict=True):
            losses[document].extend(found)
    return losses


def _windows(documents: Sequence[Sequence[int]], context: int) -> Iterator[Window]:
    for document, tokens in enumerate(documents):
        for start in range(0, len(tokens) - 1, context):
            yield document, [int(token) for token in tokens[start : start + context + 1]]


def _packed(windows: Iterator[Window], tokens_per_batch: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    size = 0
    for window in windows:
        if batch and size + len(window[1]) > tokens_per_batch:
            yield batch
            batch, size = [], 0
        batch.append(window)
        size += len(window[1])
    if batch:
        yield batch


@torch.no_grad()
def _window_losses(model: Llama, windows: list[list[int]]) -> list[list[float]]:
    device = model.embed.weight.device
    lengths = [len(tokens) - 1 for tokens in windows]
    ids = torch.tensor([token for tokens in windows for token in tokens[:-1]], device=device)
    labels = torch.tensor([token for tokens in windows for token in tokens[1:]], device=device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    x_ND = model(ids[None], positions[None], bounds, max(lengths))[0]
    return [piece.tolist() for piece in token_losses(x_ND, model.head_weight, labels).split(lengths)]


@torch.no_grad()
def choice_losses(
    model: Llama, context: Sequence[int], choices: Sequence[Sequence[int]]
) -> tuple[list[float], list[bool]]:
    """Negative log-likelihood in nats of each choice after `context`, and whether greedy decoding would give it.

    The context, of at least one token, is read once; the choices go on from its keys and values as one batch.
    """
    device = model.embed.weight.device
    longest = max(len(choice) for choice in choices)
    cache = Cache(model.config, 1, len(context) + longest, model.compute, device)
    ids = torch.tensor([list(context)], device=device)
    last_1D = model.cached(ids, torch.arange(len(context), device=device)[None], cache, torch.ones_like(ids).bool())[
        :, -1
    ]
    rows = torch.tensor([[*choice, *[IGNORE] * (longest - len(choice))] for choice in choices], device=device)
    x_CTD = last_1D[:, None].expand(len(choices), 1, -1)
    if longest > 1:
        valid = rows[:, :-1] != IGNORE
        positions = torch.arange(len(context), len(context) + longest - 1, device=device).expand(len(choices), -1)
        rest = model.cached(rows[:, :-1].clamp(min=0), positions, cache.repeated(len(choices)), valid)
        x_CTD = torch.cat((x_CTD, rest), 1)
    return _sums_and_greedy(model, x_CTD, rows)


def _sums_and_greedy(model: Llama, x_CTD: Tensor, labels_CT: Tensor) -> tuple[list[float], list[bool]]:
    sums, greedy = [], []
    for x_TD, labels_T in zip(x_CTD, labels_CT, strict=True):
        kept = labels_T != IGNORE
        logits_TV = model.logits(x_TD[kept])
        labels = labels_T[kept]
        sums.append((logits_TV.logsumexp(-1) - logits_TV.gather(1, labels[:, None])[:, 0]).sum().item())
        greedy.append(bool((logits_TV.argmax(-1) == labels).all()))
    return sums, greedy
