"""Text from a model: many prompts at once, keys and values kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ahkio.model.decode import Cache, Decoder
from ahkio.model.llama import Llama
from ahkio.model.prefix import read_shared

TOKENS_PER_BATCH = 4096  # of prompts read at a time


@torch.no_grad()
def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    stop: set[int],
    temperature: float = 0.0,
    seed: int = 0,
    until: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the prompt and without the token of `stop` that ended it.

    temperature 0 takes the likeliest token; above, tokens are drawn from the softmax of logits / temperature, the same
    for the same seed. `until(new tokens)` ends a row when it says true. A prompt needs at least one token.
    """
    device = model.embed.weight.device
    dice, decoder = torch.Generator(device).manual_seed(seed), Decoder(model)
    cache = Cache(model.config, [len(prompt) for prompt in prompts], max_new, model.compute, device)
    logits_BV = _read(model, prompts, cache)
    new: list[list[int]] = [[] for _ in prompts]
    owner = list(range(len(prompts)))  # the prompt that each row of the cache belongs to
    going = list(owner)  # the rows that have not ended
    for left in range(max_new, 0, -1):
        chosen_B = _choose(logits_BV, temperature, dice)
        chosen = chosen_B.tolist()
        going = [row for row in going if goes_on(chosen[row], new[owner[row]], stop, until)]
        if not going or left == 1:
            break
        if 4 * len(going) <= 3 * len(owner):  # to drop rows is to copy the others
            cache.keep(going)
            chosen_B, owner = chosen_B[going], [owner[row] for row in going]
            going = list(range(len(owner)))
        logits_BV = decoder.step(chosen_B, cache)
    return new


def _read(model: Llama, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Take the prompts into the cache, what they begin with alike read once; fp32 logits (B, V) of what comes next."""
    last = [len(prompt) - 1 for prompt in prompts]
    states: dict[int, Tensor] = {}
    for numbers, found in read_shared(model, prompts, last, TOKENS_PER_BATCH, cache):
        states |= zip(numbers, found, strict=True)
    return model.logits(torch.cat([states[row] for row in range(len(prompts))]))


def _choose(logits_BV: Tensor, temperature: float, dice: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=dice)[:, 0]


def goes_on(token: int, new: list[int], stop: set[int], until: Callable[[list[int]], bool] | None) -> bool:
    """Add a row's chosen token to its new ones, unless it is one to stop at; return whether the row goes on."""
    if token in stop:
        return False
    new.append(token)
    return until is None or not until(new)
