import json
from pathlib import Path

import pytest

from ahkio.core.artifact import Artifact, chain, create, draft_of, is_done, write_json
from ahkio.core.errors import UserError


def make(path: Path, **inputs: Artifact) -> Artifact:
    with create(path, keep_draft=False) as (draft, manifest):
        (draft / "data.txt").write_text(path.name)
        manifest |= {"facts": {}, "inputs": {made.path.name: made.digest for made in inputs.values()}}
    return Artifact(path)


def fail_after_writing(path: Path) -> None:
    with create(path, keep_draft=True) as (draft, _):
        (draft / "part").write_text("kept")
        raise RuntimeError


def test_what_is_half_made_does_not_look_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_after_writing(tmp_path / "a")
    assert not is_done(tmp_path / "a")
    assert (draft_of(tmp_path / "a") / "part").read_text() == "kept"


def test_a_draft_is_kept_for_a_stage_that_resumes_and_cleared_for_one_that_does_not(tmp_path: Path) -> None:
    old = draft_of(tmp_path / "a") / "old"
    old.parent.mkdir()
    old.write_text("")
    with pytest.raises(RuntimeError):
        fail_after_writing(tmp_path / "a")
    assert old.exists()
    with create(tmp_path / "a", keep_draft=False):
        assert not old.exists()


def test_the_manifest_has_the_size_and_checksum_of_every_file(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    assert list(made.manifest["files"]) == ["data.txt"]
    assert made.manifest["files"]["data.txt"]["bytes"] == 1
    made.verify()


@pytest.mark.parametrize("harm", [lambda p: p.write_text("b"), lambda p: p.unlink(), lambda p: p.write_text("longer")])
def test_verify_notices_a_changed_a_missing_and_a_longer_file(tmp_path: Path, harm) -> None:
    made = make(tmp_path / "a")
    harm(made.path / "data.txt")
    with pytest.raises(UserError, match=r"data\.txt is not the file"):
        made.verify()


def test_the_chain_leads_from_the_first_input_to_the_artifact_each_once(tmp_path: Path) -> None:
    text = make(tmp_path / "text")
    left, right = make(tmp_path / "left", text=text), make(tmp_path / "right", text=text)
    model = make(tmp_path / "model", left=left, right=right)
    assert [made.path.name for made in chain(model)] == ["text", "left", "right", "model"]


def test_a_chain_with_a_changed_or_missing_link_is_refused(tmp_path: Path) -> None:
    text = make(tmp_path / "text")
    model = make(tmp_path / "model", text=text)
    manifest = json.loads((text.path / "manifest.json").read_text())
    write_json(text.path / "manifest.json", manifest | {"facts": {"tokens": 1}})
    with pytest.raises(UserError, match="changed after model was made"):
        chain(model)


def test_an_artifact_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    with create(tmp_path / "a", keep_draft=False), pytest.raises(UserError, match="being made by another process"):
        make(tmp_path / "a")


def test_a_manifest_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    (made.path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="can't be read"):
        _ = Artifact(made.path).facts
