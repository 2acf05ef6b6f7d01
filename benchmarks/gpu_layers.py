"""Claim: on a GPU, the 8B's layers train at 45% of an H100's bf16 peak or more.

Llama 3.1 8B at full width with 6 of its 32 layers, which fit into 80 GB with fp32 master weights and AdamW; one
document of 8,192 tokens; products in bf16, all compiled. Our step, the plain loop over transformers' model, and
torchtitan's model as its trainer sets it up on one GPU (blocks and loss compiled, autocast), where it is installed:
`pip install --no-deps torchtitan==0.2.2 torchdata tyro docstring_parser typeguard tomli`. Where there is no GPU,
nothing is run.

MFU = tokens/s x FLOP per token / the maker's dense bf16 peak. FLOP per token is 6 for each weight of a matrix
product, of the output projection too, and 6 x layers x heads x head width x length for the causal half of attention;
`mfu_full`, kept beside it, counts both halves.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from time import perf_counter

from bench import Contender, Line, Round, main
from train_step import CLIP, Step, Work, adamw, ahkio, batch_of, transformers_loop, transformers_weights

from ahkio.core import machine
from ahkio.model.shape import LlamaConfig, RopeScaling
from ahkio.tokens.batches import IGNORE

LAYERS_OF_8B = LlamaConfig(
    layers=6, width=4096, heads=32, kv_heads=8, head_width=128, ffn=14336, vocab=128_256, theta=5e5,
    rope_scaling=RopeScaling(), max_positions=8192,
)  # fmt: skip
WORK = Work(rows=1, length=8192, vocab=LAYERS_OF_8B.vocab)
STEPS = 5  # in a round


def torchtitan(work: Work, c: LlamaConfig, bf16: bool, device: str) -> Step:
    import torch
    from torchtitan.components.loss import cross_entropy_loss
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer
    from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

    shape = TransformerModelArgs(
        dim=c.width, n_layers=c.layers, n_heads=c.heads, n_kv_heads=c.kv_heads, vocab_size=c.vocab, multiple_of=c.ffn,
        norm_eps=c.norm_eps, rope_theta=c.theta, max_seq_len=work.length,
    )  # fmt: skip
    with torch.device(device):
        model = Transformer(shape)
    model.load_state_dict(Llama3StateDictAdapter(shape, None).from_hf(transformers_weights(c)))
    for block in model.layers.values():
        block.compile(fullgraph=True)
    loss_of, optimizer = torch.compile(cross_entropy_loss), adamw(model)

    def step(number: int) -> float:
        batch = batch_of(work, number)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits_BTV = model(torch.from_numpy(batch.ids_BT).to(device))
            summed = loss_of(logits_BTV, torch.from_numpy(batch.labels_BT).to(device))
        loss = summed / (batch.labels_BT != IGNORE).sum()
        del logits_BTV
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


CONTENDERS: dict[str, Callable[[Work, LlamaConfig, bool, str], Step]] = {
    "ahkio": partial(ahkio, compiled=True),
    "transformers": partial(transformers_loop, compiled=True),
} | ({"torchtitan": torchtitan} if find_spec("torchtitan") else {})

LINES = (
    Line(
        setting="8b-layers",
        title="6 layers of the 8B at full width, 1 x 8,192 tokens, MFU (causal formula)",
        unit="%",
        contenders=tuple(CONTENDERS),
        bar=45.0,
        goal=55.0,
        absolute=True,
        rounds=3,
        quick=("ahkio",),
        alone=True,
        agree=2e-2,
    ),
)


def contender(_setting: str, name: str) -> Contender:
    import torch

    step, numbers = CONTENDERS[name](WORK, LAYERS_OF_8B, True, "cuda"), itertools.count()
    peak, _ = machine.peak_flops("bfloat16", "cuda")
    causal = LAYERS_OF_8B.flops_per_token(WORK.length)
    full = causal + 6 * LAYERS_OF_8B.layers * LAYERS_OF_8B.heads * LAYERS_OF_8B.head_width * WORK.length

    def run() -> Round:
        began = perf_counter()
        losses = [step(next(numbers)) for _ in range(STEPS)]  # each waits for the GPU
        rate = STEPS * WORK.rows * WORK.length / (perf_counter() - began)
        return {
            "value": 100 * rate * causal / peak,
            "mfu_full": 100 * rate * full / peak,
            "tokens_per_second": rate,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "check": losses[-1],
        }

    return run


if __name__ == "__main__":
    if machine.kind() != "cuda":
        print("No GPU is found here, so the 8B's layers were not measured.")
        sys.exit()
    main(__file__, LINES, contender)
