import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from life import Life, a_life, write_tiny_model

from ahkio.core.artifact import Artifact
from ahkio.core.errors import UserError
from ahkio.core.stage import Stage
from ahkio.release.export import Export, check_tokenizer, copy_from_base

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return folder


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins for the model room: what was converted, and to what."""
    import torch

    seen: list[Any] = []

    def convert(source: Path, folder: Path, dtype: torch.dtype) -> Any:
        seen.extend([source, dtype])
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"12345678")
        return SimpleNamespace(vocab=320, parameters=17)

    hub, gate = ModuleType("ahkio.model.hub"), ModuleType("ahkio.model.gate")
    vars(hub).update(convert=convert)
    vars(gate).update(compare_with_transformers=lambda folder: {"checked": True, "max_difference": 0.0})
    monkeypatch.setitem(sys.modules, "ahkio.model.hub", hub)
    monkeypatch.setitem(sys.modules, "ahkio.model.gate", gate)
    return seen


def written(life: Life, tiny: Path) -> dict[Stage, Artifact]:
    return life.write({"Import": {name: (tiny / name).read_bytes() for name in TOKENIZER}})


def test_an_export_is_the_trained_weights_with_the_tokenizer_of_the_base(
    tmp_path: Path, tiny: Path, saved: list[Any]
) -> None:
    import torch

    life = a_life(tmp_path / "store")
    inputs, out = written(life, tiny), tmp_path / "out"
    out.mkdir()
    facts = Export(train=life.stage("Train"), base=life.stage("Import"), dtype="bfloat16").run(out, inputs)
    assert saved == [inputs[life.stage("Train")].path / "model", torch.bfloat16]
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert facts == {
        "verified": {"checked": True, "max_difference": 0.0},
        "dtype": "bfloat16",
        "parameters": 17,
        "bytes": 8,
    }


def test_an_export_that_transformers_reads_otherwise_is_refused(
    tmp_path: Path, tiny: Path, saved: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(folder: Path) -> dict[str, Any]:
        raise UserError("logits differ by 0.5")

    vars(sys.modules["ahkio.model.gate"])["compare_with_transformers"] = differ
    life = a_life(tmp_path / "store")
    inputs, out = written(life, tiny), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="logits differ"):
        Export(train=life.stage("Train"), base=life.stage("Import")).run(out, inputs)


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(tmp_path: Path, tiny: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    copy_from_base(tiny, tmp_path)
    check_tokenizer(tmp_path, tiny, vocab=320)
    other = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    other.normalizer = normalizers.Lowercase()
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="encodes a probe text"):
        check_tokenizer(tmp_path, tiny, vocab=320)


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(tmp_path: Path, tiny: Path) -> None:
    copy_from_base(tiny, tmp_path)
    with pytest.raises(UserError, match="the model has 100 tokens"):
        check_tokenizer(tmp_path, tiny, vocab=100)


def test_a_broken_tokenizer_is_a_sentence(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="can't load the tokenizer"):
        check_tokenizer(tmp_path, tiny, vocab=320)


def test_a_base_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        copy_from_base(tmp_path, tmp_path / "out")
