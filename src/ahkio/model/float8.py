"""The products of a Llama's blocks in 8-bit floats (torchao, scaled by tensor). Experimental until measured.

P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022: e4m3 for weights and activations, e5m2 for gradients.
Master weights and their gradients, norms, attention, embedding and the output projection keep their precision.
"""

import torch
from torch import nn

from ahkio.core.errors import UserError

CAPABILITY = (8, 9)  # of the first NVIDIA GPUs with products in fp8


def to_float8(block: nn.Module, device: torch.device) -> None:
    """Let the products of `block` compute in fp8; a CPU, which has none, rounds as they would and computes as before.

    Raises UserError where torchao or the GPU can't.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise UserError(
            "train.precision=fp8 needs torchao: pip install 'ahkio[fp8]', or take train.precision=bf16."
        ) from error
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise UserError(f"{torch.cuda.get_device_name(device)} has no products in fp8; take train.precision=bf16.")
    convert_to_float8_training(block, config=Float8LinearConfig(emulate=device.type == "cpu"))
