import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ahkio.core import state
from ahkio.core.errors import UserError
from ahkio.model import hub

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "moment": torch.ones(2)}


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = state.save(tmp_path, 3, TENSORS, {"ledger": {"finnish": 7}})
    found = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    state.load(made, found)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert state.read_state(made)["ledger"] == {"finnish": 7}


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    made = state.save(tmp_path, 3, TENSORS, {})
    assert {path.suffix for path in made.iterdir()} == {".safetensors", ".json"}


def test_only_the_newest_checkpoints_are_kept_and_drafts_are_none(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state.save(tmp_path, step, TENSORS, {}, keep=2)
    (tmp_path / "step-00000009.tmp").mkdir()
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    made = state.save(tmp_path, 3, TENSORS, {})
    file = next(made.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UserError, match=file.name):
        state.read_state(made)


def test_a_full_disk_rises_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(OSError, match="No space left") as caught:
        state.save(tmp_path, 3, TENSORS, {})
    assert caught.value.errno == errno.ENOSPC
    assert state.checkpoints(tmp_path) == []


def test_a_full_disk_under_weights_rises_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        hub.save_tensors(TENSORS, tmp_path)
    assert caught.value.errno == errno.ENOSPC
