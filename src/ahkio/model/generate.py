"""Text from a model: many prompts at once, keys and values kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ahkio.model.cache import Cache
from ahkio.model.llama import Llama


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
    longest = max(len(prompt) for prompt in prompts)
    cache = Cache(model.config, len(prompts), longest + max_new, model.compute, device)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)[:, None]
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    places = torch.arange(longest, device=device)
    last_BD = model.cached(ids, (places - padding).clamp(min=0), cache, places >= padding)[:, -1]
    dice = torch.Generator(device).manual_seed(seed)
    new: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    for step in range(max_new):
        chosen = _choose(model.logits(last_BD), temperature, dice)
        going -= _ended(going, chosen.tolist(), new, stop, until)
        if not going or step + 1 == max_new:
            break
        valid = torch.ones_like(chosen[:, None]).bool()
        last_BD = model.cached(chosen[:, None], longest + step - padding, cache, valid)[:, -1]
    return new


def _choose(logits_BV: Tensor, temperature: float, dice: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=dice)[:, 0]


def _ended(
    going: set[int], chosen: list[int], new: list[list[int]], stop: set[int], until: Callable[[list[int]], bool] | None
) -> set[int]:
    """Take in the token chosen for each row still going; return the rows that end with it."""
    ended = set()
    for row in going:
        if chosen[row] in stop:
            ended.add(row)
            continue
        new[row].append(chosen[row])
        if until is not None and until(new[row]):
            ended.add(row)
    return ended
