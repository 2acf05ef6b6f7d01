"""Checkpoints: tensors as safetensors, the rest as JSON, written while the run goes on and published by one rename.

step-00000100/
  model.safetensors   the tensors
  state.json          the step, the ledger, the run's identity, and the CRC-32 of every other file: written last

A save copies the tensors into a buffer laid out as the file will be, and writes that past the page cache. Only what
changes the tensors waits, and only for the copy. The file is read by torch.distributed.checkpoint's
HuggingFaceStorageReader. Of sharded tensors each rank can write a file of its own, with the offsets of its parts as
DCP_SHARDING_INFO in the header's `__metadata__`: the same reader makes of them what another layout asks for.
"""

import contextlib
import errno
import json
import os
import shutil
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from ahkio.core.artifact import write_json
from ahkio.core.errors import UserError

STATE = "state.json"
TENSORS = "model.safetensors"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
BLOCK = 4096  # bytes; a direct write begins and ends at multiples of it, in memory and in the file
CHUNK = 16 << 20  # bytes written at a time


class Saver:
    """Saves the `tensors` of a run, which its steps change in place, as checkpoints under `folder`.

    Holds a buffer of their size, pinned where they are on a GPU. As a context it ends when the last save has. What a
    save fails with, such as a full disk, rises from the next call of any method.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], keep: int = 1) -> None:
        self.folder, self.keep = folder, keep
        self._copied = threading.Event()
        self._copied.set()
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._image = self._worker.submit(_Image, tensors)  # now, since fresh memory costs more than the copy
        self._saved: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin the checkpoint of `step`: the tensors as they are now, and `state`. Waits for the save before it.

        Once it is published, all else in the folder but the newest `keep` checkpoints is deleted.
        """
        self.wait()
        self._copied.clear()
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
        self._saved = self._worker.submit(self._save, step, state, ready)

    def wait_until_copied(self) -> None:
        """Return when the tensors may change. Whoever changes them calls this first."""
        self._copied.wait()
        if self._saved and self._saved.done():
            self._saved.result()

    def wait(self) -> None:
        """Return when all that was saved is on the disk."""
        if self._saved:
            self._saved.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.shutdown()
        self.wait()

    def _save(self, step: int, state: dict[str, Any], ready: torch.cuda.Event | None) -> None:
        try:
            image = self._image.result()
            image.fill(ready)
        finally:
            self._copied.set()
        self._publish(step, state, image)

    def _publish(self, step: int, state: dict[str, Any], image: "_Image") -> None:
        final = self.folder / f"step-{step:08d}"
        draft = self.folder / f"step-{step:08d}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with ThreadPoolExecutor(1, initializer=_give_way) as other:
            checksum = other.submit(image.crc32)
            write_direct(draft / TENSORS, image.blocks, image.size)
        write_json(draft / STATE, state | {"step": step, "files": {TENSORS: checksum.result()}})
        _sync(draft)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(draft, final)
        _sync(self.folder)
        for old in set(self.folder.iterdir()) - set(checkpoints(self.folder)[-self.keep :]):
            shutil.rmtree(old)


class _Image:
    """A safetensors file in memory: a header made once, and room for the values of `tensors`, filled at every save."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        header = _header(tensors)
        self.size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
        self.device = next(iter(tensors.values())).device
        room = torch.empty(self.size + 2 * BLOCK, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        room = room[-room.data_ptr() % BLOCK :][: -(-self.size // BLOCK) * BLOCK].zero_()
        room[: len(header)] = torch.frombuffer(header, dtype=torch.uint8)
        self.blocks = room.numpy().data
        self.tensors = tuple(tensors.values())
        self.places = room[len(header) : self.size].split([tensor.nbytes for tensor in self.tensors])

    def fill(self, ready: torch.cuda.Event | None) -> None:
        """Copy the tensors' values as of the event `ready`; on a CPU in this thread alone, as the cores have work."""
        if self.device.type == "cuda":
            stream = torch.cuda.Stream(self.device)
            if ready:
                stream.wait_event(ready)
            with torch.cuda.stream(stream):
                for place, tensor in zip(self.places, self.tensors, strict=True):
                    place.copy_(_bytes(tensor), non_blocking=True)
            stream.synchronize()
        else:
            for place, tensor in zip(self.places, self.tensors, strict=True):
                np.copyto(place.numpy(), _bytes(tensor).numpy())

    def crc32(self) -> int:
        return zlib.crc32(self.blocks[: self.size])


def _header(tensors: Mapping[str, Tensor]) -> bytearray:
    """The header of a safetensors file, filled up with spaces to whole blocks: its length in 8 bytes, then JSON."""
    entries, at = {}, 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at := at + tensor.nbytes],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % BLOCK)
    return bytearray(len(text).to_bytes(8, "little") + text)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def write_direct(path: Path, blocks: memoryview, size: int) -> None:
    """Write the first `size` bytes of `blocks` to a new file and see them on the disk.

    Past the page cache where the file system can: that takes no core's time and no memory.
    """
    try:
        _write(path, blocks, size, getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _write(path, blocks, size, 0)


def _write(path: Path, blocks: memoryview, size: int, flags: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o666)
    try:
        at = 0
        while at < len(blocks):
            at += os.write(file, blocks[at : at + CHUNK])
        os.ftruncate(file, size)
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """See the names in `folder` on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _give_way() -> None:
    """Let this thread take little of the time that others want; only Linux has that for single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first. A draft, however far it got, is none."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / STATE).is_file())


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What was saved beside the tensors. Raises when it or any file of the checkpoint is damaged."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        damaged = [name for name, checksum in state["files"].items() if crc32(checkpoint / name) != checksum]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The checkpoint {checkpoint} is torn ({error}); {_ADVICE}") from error
    if damaged:
        raise UserError(f"The checkpoint {checkpoint} is damaged: {damaged[0]} has another checksum; {_ADVICE}")
    return state


_ADVICE = "delete that folder, and the run goes on from the checkpoint before it or from the start."


def crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def load(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, which give names and shapes, from the checkpoint."""
    with _quiet(), _plain_errors():
        state_dict_loader.load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Let what went wrong on a rank rise as itself: torch's wrapper is not even an Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
