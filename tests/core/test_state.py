import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ahkio.core import state
from ahkio.core.errors import UserError
from ahkio.model import hub

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "odd": torch.ones(3, dtype=torch.bfloat16),
    "moment": torch.full((2,), 0.25),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "count": torch.tensor(7),
}


def saved(folder: Path, step: int = 3, tensors: Mapping[str, Tensor] = TENSORS, keep: int = 1, **facts: Any) -> Path:
    with state.Saver(folder, tensors, keep) as saver:
        saver.save(step, facts)
    return state.checkpoints(folder)[-1]


def loaded(checkpoint: Path, tensors: Mapping[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    state.load(checkpoint, found)
    return found


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "write_direct", full)


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = saved(tmp_path, ledger={"finnish": 7})
    found = loaded(made)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert state.read_state(made)["ledger"] == {"finnish": 7}
    assert state.read_state(made)["step"] == 3


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    assert {path.suffix for path in saved(tmp_path).iterdir()} == {".safetensors", ".json"}


def test_a_checkpoint_is_a_safetensors_file_like_any(tmp_path: Path) -> None:
    found = load_file(saved(tmp_path) / state.TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_only_the_newest_checkpoints_are_kept_and_drafts_are_none(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saved(tmp_path, step, keep=2)
    (tmp_path / "step-00000009.tmp").mkdir()
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_each_checkpoint_holds_the_values_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(1 << 20)}
    with state.Saver(tmp_path, tensors, keep=5) as saver:
        for step in range(5):
            saver.save(step, {})
            saver.wait_until_copied()
            tensors["weight"] += 1
    for step, made in enumerate(state.checkpoints(tmp_path)):
        state.read_state(made)
        assert torch.equal(loaded(made, tensors)["weight"], torch.full((1 << 20,), float(step)))


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_saved_as_they_were_while_it_goes_on(tmp_path: Path) -> None:
    weight = torch.zeros(1 << 24, device="cuda")
    with state.Saver(tmp_path, {"weight": weight}, keep=5) as saver:
        for step in range(5):
            saver.save(step, {})
            saver.wait_until_copied()
            weight += 1
    for step, made in enumerate(state.checkpoints(tmp_path)):
        assert loaded(made, {"weight": weight})["weight"].eq(step).all()


def test_a_file_system_without_direct_writes_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    assert torch.equal(loaded(saved(tmp_path))["weight"], TENSORS["weight"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    made = saved(tmp_path)
    file = next(made.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UserError, match=file.name):
        state.read_state(made)


def test_a_checkpoint_whose_deleting_was_cut_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(path: Path, **_: object) -> None:
        if path.exists():
            (path / state.TENSORS).unlink()
            raise KeyboardInterrupt

    with state.Saver(tmp_path, TENSORS) as saver:
        saver.save(1, {})
    with monkeypatch.context() as patch:
        patch.setattr(state.shutil, "rmtree", cut_off)
        saver = state.Saver(tmp_path, TENSORS)
        saver.save(2, {})
        with pytest.raises(KeyboardInterrupt):
            saver.wait()
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-00000002"]
    with state.Saver(tmp_path, TENSORS) as saver:
        saver.save(3, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("call", ["save", "wait_until_copied", "wait", "__exit__"])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_rises_as_what_it_is_from_the_next_call(tmp_path: Path, call: str) -> None:
    saver = state.Saver(tmp_path, TENSORS)
    saver.save(3, {})
    while not saver._saved.done():
        pass
    with pytest.raises(OSError, match="No space left") as caught:
        getattr(saver, call)(*((4, {}) if call == "save" else ()))
    assert caught.value.errno == errno.ENOSPC
    assert state.checkpoints(tmp_path) == []


def test_a_checkpoint_that_fails_leaves_the_one_before_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made = saved(tmp_path, 3)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 4)
    assert state.checkpoints(tmp_path) == [made]
    state.read_state(made)


def test_a_full_disk_under_weights_rises_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        hub.save_tensors(TENSORS, tmp_path)
    assert caught.value.errno == errno.ENOSPC
