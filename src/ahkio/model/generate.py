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
    cache, shared = _read_shared(model, prompts, max_new)
    rests = [list(prompt[shared:]) for prompt in prompts]
    longest = max(len(rest) for rest in rests)
    padding = torch.tensor([longest - len(rest) for rest in rests], device=device)[:, None]
    ids = torch.tensor([[0] * (longest - len(rest)) + rest for rest in rests], device=device)
    places = torch.arange(longest, device=device)
    last_BD = model.cached(ids, shared + (places - padding).clamp(min=0), cache, places >= padding)[:, -1]
    dice = torch.Generator(device).manual_seed(seed)
    new: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))  # the prompts that the rows of the cache belong to
    for step in range(max_new):
        chosen_B = _choose(model.logits(last_BD), temperature, dice)
        kept = _take_in(going, chosen_B.tolist(), new, stop, until)
        if not kept or step + 1 == max_new:
            break
        if len(kept) < len(going):
            rows = torch.tensor(kept, device=device)
            cache, chosen_B, padding = cache.selected(rows), chosen_B[rows], padding[rows]
            going = [going[row] for row in kept]
        valid_B1 = torch.ones_like(chosen_B[:, None], dtype=torch.bool)
        last_BD = model.cached(chosen_B[:, None], shared + longest + step - padding, cache, valid_B1)[:, -1]
    return new


def _read_shared(model: Llama, prompts: Sequence[Sequence[int]], max_new: int) -> tuple[Cache, int]:
    """A cache with a row for each prompt that holds the tokens all of them begin with, read once; and their number.

    The last token of a prompt is never among them.
    """
    device = model.embed.weight.device
    shortest, longest = min(prompts, key=len), max(len(prompt) for prompt in prompts)
    shared = 0
    while shared + 1 < len(shortest) and all(prompt[shared] == shortest[shared] for prompt in prompts):
        shared += 1
    cache = Cache(model.config, 1, longest + max_new, model.compute, device)
    if shared:
        ids = torch.tensor([list(shortest[:shared])], device=device)
        model.cached(ids, torch.arange(shared, device=device)[None], cache, torch.ones_like(ids, dtype=torch.bool))
    return cache.repeated(len(prompts)), shared


def _choose(logits_BV: Tensor, temperature: float, dice: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=dice)[:, 0]


def _take_in(
    going: list[int], chosen: list[int], new: list[list[int]], stop: set[int], until: Callable[[list[int]], bool] | None
) -> list[int]:
    """Add each row's chosen token to its prompt's new ones; return the rows that do not end with it."""
    kept = []
    for row, (prompt, token) in enumerate(zip(going, chosen, strict=True)):
        if token in stop:
            continue
        new[prompt].append(token)
        if until is None or not until(new[prompt]):
            kept.append(row)
    return kept
