"""Checkpoints: tensors by torch.distributed.checkpoint as safetensors, the rest as JSON, published by one rename.

step-00000100/
  *.safetensors   the tensors
  state.json      the step, the ledger, the run's identity, and a checksum of every other file: written last
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ahkio.core.artifact import sha256, write_json
from ahkio.core.errors import UserError

STATE = "state.json"


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 1) -> Path:
    """Publish the checkpoint of `step` under `folder`, and delete all else there but the newest `keep`."""
    final = folder / f"step-{step:08d}"
    draft = folder / f"step-{step:08d}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with _quiet(), _plain_errors():
        state_dict_saver.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(draft)), no_dist=True)
    files = {path.name: sha256(path) for path in sorted(draft.iterdir())}
    write_json(draft / STATE, state | {"step": step, "files": files})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(draft, final)
    for old in set(folder.iterdir()) - set(checkpoints(folder)[-keep:]):
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first. A draft, however far it got, is none."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / STATE).is_file())


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What was saved beside the tensors. Raises when it or any file of the checkpoint is damaged."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        damaged = [name for name, digest in state["files"].items() if sha256(checkpoint / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The checkpoint {checkpoint} is torn ({error}); {_ADVICE}") from error
    if damaged:
        raise UserError(f"The checkpoint {checkpoint} is damaged: {damaged[0]} has another checksum; {_ADVICE}")
    return state


_ADVICE = "delete that folder, and the run goes on from the checkpoint before it or from the start."


def load(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, which give names and shapes, from the checkpoint."""
    with _quiet(), _plain_errors():
        state_dict_loader.load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Let what went wrong on a rank, such as a full disk, rise as itself: torch's wrapper is not even an Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
