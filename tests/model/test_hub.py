import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import KINDS, close, documents, logits, one, theirs, write

from ahkio.core.errors import UserError
from ahkio.model import hub
from ahkio.model.hub import load_model, save_model, save_tensors
from ahkio.model.shape import config_from_hf, config_to_hf, read_config


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model", **KINDS["untied"])


def refusal(call, *arguments):
    """The one sentence with which `call` refuses."""
    with pytest.raises(UserError) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit_config(folder, **changes):
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "gone"}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same_weights(one_model, other):
    return all(torch.equal(a, b) for a, b in zip(one_model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back_and_transformers_reads_the_same(tmp_path, kind):
    model, again = load_model(write(tmp_path / "a", **KINDS[kind])), tmp_path / "b"
    again.mkdir()
    save_model(model, again, torch.float32, bos=1, eos=2)
    assert load_model(again).config == model.config
    assert same_weights(load_model(again), model)
    batch = one(documents(20)[0], 300)
    with torch.no_grad():
        wanted = theirs(again)(batch[0], position_ids=batch[1]).logits
        assert close(logits(model, *batch), wanted)
    assert json.loads((again / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}


def test_a_model_saved_in_bf16_is_rounded_once_and_says_so(folder, tmp_path):
    model = load_model(folder)
    save_model(model, tmp_path, torch.bfloat16)
    for ours, saved in zip(model.parameters(), load_model(tmp_path).parameters(), strict=True):
        assert torch.equal(ours.bfloat16().float(), saved)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_large_model_is_saved_in_parts_with_an_index_that_transformers_reads(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.save_tensors, "__defaults__", (10_000,))
    model = load_model(folder)
    save_model(model, tmp_path, torch.float32)
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert all(sum(t.nbytes for t in load_file(p).values()) <= 10_000 or len(load_file(p)) == 1 for p in parts)
    assert same_weights(load_model(tmp_path), model)
    batch = one(documents(20)[0])
    assert close(logits(model, *batch), theirs(tmp_path)(batch[0]).logits)
    index = json.loads((tmp_path / hub.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in model.parameters())


def test_a_model_in_parts_written_by_transformers_is_read(tmp_path):
    write(tmp_path / "whole")
    theirs(tmp_path / "whole").save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert (tmp_path / "parts" / hub.INDEX).is_file()
    assert same_weights(load_model(tmp_path / "parts"), load_model(tmp_path / "whole"))


def test_a_tied_weight_that_is_stored_twice_is_read_once(tmp_path):
    write(tmp_path, **KINDS["tied"])
    edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert load_model(tmp_path).head is None


def test_a_missing_tensor_is_refused_by_name(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    assert "lacks 1 tensors, the first 'model.norm.weight'" in refusal(load_model, folder)


def test_a_foreign_tensor_is_refused_by_name(folder):
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32)}))
    assert name in refusal(load_model, folder)


def test_a_misshapen_tensor_is_refused_with_both_shapes(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(33)}))
    said = refusal(load_model, folder)
    assert "model.norm.weight has shape [33]" in said
    assert "[32]" in said


def test_a_pickle_is_never_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "never pickles" in refusal(load_model, folder)


def test_a_torn_file_is_refused_by_name(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in refusal(load_model, folder)


def test_a_part_named_in_the_index_but_gone_is_refused_by_name(folder):
    save_tensors(load_file(folder / "model.safetensors"), folder, 10_000)
    gone = sorted(folder.glob("model-*"))[1]
    gone.unlink()
    assert gone.name in refusal(load_model, folder)


def test_a_torn_index_is_refused_by_name(folder):
    (folder / hub.INDEX).write_text('{"weight_map": {')
    assert hub.INDEX in refusal(load_model, folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    {
        "bias": ({"attention_bias": True}, "attention_bias is True"),
        "mlp bias": ({"mlp_bias": True}, "mlp_bias is True"),
        "another family": ({"model_type": "mistral"}, "model_type is 'mistral'"),
        "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        "another scaling": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        "another old scaling": ({"rope_parameters": "gone", "rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        "nothing said": ({"intermediate_size": "gone"}, "intermediate_size"),
        "uneven groups": ({"num_key_value_heads": 3}, "kv_heads (3)"),
    }.values(),
)
def test_a_config_that_this_llama_does_not_do_is_refused(folder, changes, said):
    edit_config(folder, **changes)
    assert said in refusal(load_model, folder)


def test_a_folder_without_a_config_is_refused(tmp_path):
    assert "config.json" in refusal(load_model, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in refusal(load_model, tmp_path)


def test_configs_of_older_and_newer_transformers_mean_the_same(folder):
    edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    newer = read_config(folder)
    edit_config(folder, rope_parameters="gone", rope_theta=500_000.0, rope_scaling=None, head_dim="gone")
    assert read_config(folder) == newer
    assert newer.theta == 500_000.0


def test_a_shape_comes_back_from_its_own_config(tmp_path):
    for kind, settings in KINDS.items():
        shape = read_config(write(tmp_path / kind, **settings))
        assert config_from_hf(config_to_hf(shape, "float32", 1, 2), "here") == shape
