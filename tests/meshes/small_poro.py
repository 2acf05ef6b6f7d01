"""The recipes of Poro 2 with depth and width cut, two steps on small texts, on their own meshes scaled down."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import poro2_8b
import poro2_70b
from small_run import MIX, SmallModel

from ahkio.core.mesh import Mesh
from ahkio.tokens.batches import Rows

CUT = {
    "width": 64,
    "head_width": 8,
    "ffn": 112,
    "vocab": 264,
}  # 70B: 64 heads of 8 are wider than its stream; so is 8B's
SMALL = {
    "8b": (poro2_8b, replace(poro2_8b.LLAMA_3_1_8B, layers=2, **CUT), Mesh(tensor=2)),
    "70b": (poro2_70b, replace(poro2_70b.LLAMA_3_1_70B, layers=4, **CUT), Mesh(tensor=2, pipe=2)),
}


def life(name):
    """The recipe's training and export, small."""
    recipe, shape, mesh = SMALL[name]
    start = SmallModel(shape=shape)
    rows = Rows(length=32, per_step=4, documents=recipe.TRAIN.rows.documents)
    train = replace(recipe.TRAIN, start=start, mix=MIX, steps=2, rows=rows, heldout=(), mesh=mesh, device="cpu")
    return train, replace(recipe.EXPORT, train=train, base=start)
