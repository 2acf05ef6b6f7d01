"""More rows for the matrices that have one for each token."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ahkio.model.hub import rewrite

BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


def extend_rows(source: Path, folder: Path, first: int, pieces: Sequence[Sequence[int]], rows: int) -> None:
    """Write the tensors of the Hugging Face folder `source`, those by token with `rows` rows; see `extended`."""
    rewrite(source, folder, dict.fromkeys(BY_TOKEN, partial(extended, first=first, pieces=pieces, rows=rows)))


def extended(table_VC: Tensor, first: int, pieces: Sequence[Sequence[int]], rows: int) -> Tensor:
    """`table_VC` in as many rows: row first + i is the mean of the rows pieces[i], and what it lacks then that of all.

    At the mean of all output rows no token is likelier than tokens are on average, so rows that only fill up take next
    to nothing from the others. Rows below `first`, and any that it has beyond the new ones, are the very same.
    """
    flat = torch.tensor(list(chain.from_iterable(pieces)))
    lengths = torch.tensor([len(one) for one in pieces])
    means = torch.segment_reduce(table_VC[flat].float(), "mean", lengths=lengths).to(table_VC.dtype)
    beyond = table_VC[first + len(pieces) :]
    lacking = rows - first - len(pieces) - len(beyond)
    mean = table_VC[:first].mean(0, dtype=torch.float32).to(table_VC.dtype)
    return torch.cat([table_VC[:first], means, beyond, mean.expand(lacking, -1)])
