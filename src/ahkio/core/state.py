"""Checkpoints: tensors as safetensors, the rest as JSON, written while the run goes on and published by one rename.

step-00000100/
  model.safetensors        the tensors; or of each rank rank-00000.safetensors ... with its parts of them
  state.json               the step, the ledger, the run's identity, and the CRC-32 of every other file: written last

A save copies the tensors into a buffer laid out as the file will be, and writes that past the page cache. Only what
changes the tensors waits, and only for the copy. The files are read by torch.distributed.checkpoint's
HuggingFaceStorageReader: a rank's file has the offsets of its parts as DCP_SHARDING_INFO in the header's
`__metadata__`, and the reader makes of them what another layout asks for. Ranks need a file system in common and talk
through it alone: each leaves rank-00000.json beside its file, and the first, which sees them all, publishes.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ahkio.core.artifact import write_json
from ahkio.core.errors import Lost, UserError
from ahkio.core.group import Group

STATE = "state.json"
TENSORS = "model.safetensors"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
BLOCK = 4096  # bytes; a direct write begins and ends at multiples of it, in memory and in the file
CHUNK = 16 << 20  # bytes written at a time
PATIENCE = 600.0  # seconds that the first rank waits for the others' files
LAST_WORDS = 5.0  # seconds that it waits for them once the run has failed


class Saver:
    """Saves the `tensors` of a run, which its steps change in place, as checkpoints under `folder`.

    Holds a buffer of their size, pinned where they are on a GPU. As a context it ends when the last save has. What a
    save fails with, such as a full disk, rises from the next call of any method.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        keep: int = 1,
        keep_every: int = 0,
        group: Group | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Keep the newest `keep` checkpoints, and those of every `keep_every` steps. The ranks wait for each other for
        `patience` seconds."""
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.ranks, self.rank = (group.mesh.devices, group.rank) if group else (1, 0)
        self.attempt = f"-{group.gather(secrets.token_hex(4))[0]}" if group and self.ranks > 1 else ""
        self._patience, self._failed = patience, threading.Event()
        self._copied = threading.Event()
        self._copied.set()
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._image = self._worker.submit(_Image, _pieces(tensors))  # now, since fresh memory costs more than the copy
        self._saved: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], dear: int | None = None) -> None:
        """Begin the checkpoint of `step`: the tensors as they are now, and `state`. Waits for the save before it.

        Once it is published, older ones that are not to be kept are deleted, but not that of the step `dear`.
        """
        self.wait()
        self._copied.clear()
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
        self._saved = self._worker.submit(self._save, step, state, dear, ready)

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

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """End with the last save; after a failure, if the other ranks take part in it still."""
        failed = kind is not None and issubclass(kind, Exception)
        if failed:
            self._failed.set()
        self._worker.shutdown()
        if not failed:
            self.wait()

    def _save(self, step: int, state: dict[str, Any], dear: int | None, ready: torch.cuda.Event | None) -> None:
        try:
            image = self._image.result()
            image.fill(ready)
        finally:
            self._copied.set()
        self._publish(step, state, dear, image)

    def _publish(self, step: int, state: dict[str, Any], dear: int | None, image: "_Image") -> None:
        final = checkpoint_of(self.folder, step)
        draft = self.folder / f"step-{step:08d}{self.attempt}.tmp"
        if self.ranks == 1:
            shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, exist_ok=True)
        name = TENSORS if self.ranks == 1 else f"rank-{self.rank:05d}.safetensors"
        with ThreadPoolExecutor(1, initializer=_give_way) as other:
            checksum = other.submit(image.crc32)
            write_direct(draft / name, image.blocks, image.size)
        files = {name: checksum.result()}
        if self.ranks > 1:
            write_json(_note(draft, self.rank), files)
            if self.rank > 0:
                return
            files = self._all_files(draft)
        write_json(draft / STATE, state | {"step": step, "files": files})
        _sync(draft)
        _discard(final)
        os.replace(draft, final)
        _sync(self.folder)
        self._clear(step, dear)

    def _all_files(self, draft: Path) -> dict[str, int]:
        """Every rank's file and its checksum, once all are there."""
        files: dict[str, int] = {}
        notes = [_note(draft, rank) for rank in range(self.ranks)]
        began = time.monotonic()
        while missing := [rank for rank, note in enumerate(notes) if not note.is_file()]:
            waited = time.monotonic() - began
            if waited > (LAST_WORDS if self._failed.is_set() else self._patience):
                raise Lost(f"Rank {missing[0]} has not written its part of {draft} in {waited:.0f} s.")
            time.sleep(0.02)
        for note in notes:
            files |= json.loads(note.read_text())
            note.unlink()
        return files

    def _clear(self, step: int, dear: int | None) -> None:
        """Delete what is not to be kept up to `step`; what comes later may be in the making."""
        done = checkpoints(self.folder)
        kept = set(done[-self.keep :]) | {
            path for path in done if step_of(path) == dear or (self.keep_every and step_of(path) % self.keep_every == 0)
        }
        for path in self.folder.glob("step-*"):
            if path not in kept and step_of(path) <= step:
                _discard(path)


class _Piece(NamedTuple):
    """What this rank saves of a tensor, and where in it that is."""

    tensor: Tensor
    offsets: tuple[int, ...]


def _pieces(tensors: Mapping[str, Tensor]) -> dict[str, _Piece]:
    """This rank's part of each tensor, but for those that another rank has too and saves."""
    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            found[name] = _Piece(tensor, (0,) * tensor.ndim)
            continue
        place, local = tensor.device_mesh.get_coordinate(), tensor.to_local()
        assert place is not None
        copy = any(at and isinstance(kind, Replicate) for at, kind in zip(place, tensor.placements, strict=True))
        if local.numel() and not copy:
            offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)[1]
            found[name] = _Piece(local, tuple(offsets))
    return found


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint or a draft so that at no moment a part of it looks like a finished one."""
    leaving = checkpoint
    if checkpoint.suffix != ".tmp" and checkpoint.exists():
        leaving = checkpoint.with_name(f"{checkpoint.name}-old.tmp")
        shutil.rmtree(leaving, ignore_errors=True)
        os.replace(checkpoint, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _note(draft: Path, rank: int) -> Path:
    return draft / f"rank-{rank:05d}.json"


def step_of(path: Path) -> int:
    return int(path.name[5:13])


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where under `folder` the checkpoint of `step` is, or would be."""
    return folder / f"step-{step:08d}"


class _Image:
    """A safetensors file in memory: a header made once, and room for the values of `pieces`, filled at every save."""

    def __init__(self, pieces: Mapping[str, _Piece]) -> None:
        header = _header(pieces)
        self.tensors = tuple(piece.tensor for piece in pieces.values())
        self.size = len(header) + sum(tensor.nbytes for tensor in self.tensors)
        self.device = next((tensor.device for tensor in self.tensors), torch.device("cpu"))
        room = torch.empty(self.size + 2 * BLOCK, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        room = room[-room.data_ptr() % BLOCK :][: -(-self.size // BLOCK) * BLOCK].zero_()
        room[: len(header)] = torch.frombuffer(header, dtype=torch.uint8)
        self.blocks = room.numpy().data
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


def _header(pieces: Mapping[str, _Piece]) -> bytearray:
    """The header of a safetensors file, filled up with spaces to whole blocks: its length in 8 bytes, then JSON."""
    where = {name: {SAVED_OFFSETS_KEY: piece.offsets} for name, piece in pieces.items()}
    entries: dict[str, Any] = {"__metadata__": {CUSTOM_METADATA_KEY: json.dumps(where)}}
    at = 0
    for name, (tensor, _) in pieces.items():
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


def sizes(checkpoint: Path) -> dict[str, torch.Size]:
    """The names and shapes of the whole tensors in a checkpoint."""
    metadata = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    return {name: torch.Size(entry.size) for name, entry in metadata.items()}  # type: ignore[union-attr]


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints under `folder`, oldest first. A draft, however far it got, is none."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp" and (path / STATE).is_file())


def read_state(checkpoint: Path, group: Group | None = None) -> dict[str, Any]:
    """What was saved beside the tensors. Raises, on all ranks of `group`, when it or any file is damaged.

    Each rank reads its share of the files for that.
    """
    rank, ranks = (group.rank, group.mesh.devices) if group else (0, 1)
    state: dict[str, Any] = {}
    trouble = ""
    try:
        state = json.loads((checkpoint / STATE).read_text())
        for name, checksum in sorted(state["files"].items())[rank::ranks]:
            if crc32(checkpoint / name) != checksum:
                trouble = f"is damaged: {name} has another checksum"
    except (OSError, ValueError, KeyError) as error:
        trouble = f"is torn ({error})"
    troubles = [one for one in group.gather(trouble) if one] if group else [trouble] * bool(trouble)
    if troubles:
        raise UserError(f"The checkpoint {checkpoint} {troubles[0]}; {_ADVICE}")
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
