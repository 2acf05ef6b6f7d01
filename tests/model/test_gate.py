import dataclasses
import json

import pytest
import torch
from tiny_llama import KINDS, write

from ahkio.core.errors import UserError
from ahkio.model import gate
from ahkio.model.gate import compare_with_transformers
from ahkio.model.hub import load_model


def refusal(folder):
    with pytest.raises(UserError) as refused:
        compare_with_transformers(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def wrongly_read(monkeypatch, spoil):
    """Let the gate meet a reader that makes a mistake."""

    def load(folder):
        model = load_model(folder)
        with torch.no_grad():
            spoil(model)
        return model

    monkeypatch.setattr(gate, "load_model", load)


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_model_passes_and_the_record_says_how_closely(tmp_path, kind):
    facts = compare_with_transformers(write(tmp_path, **KINDS[kind]))
    assert facts["checked"] is True
    assert 0 <= facts["max_difference"] <= facts["bound"] < 1e-3 * facts["largest_logit"]
    assert facts["against"].startswith("transformers ")
    assert facts["tokens"] > 100
    assert json.loads(json.dumps(facts)) == facts


def test_query_rows_in_another_order_are_refused(tmp_path, monkeypatch):
    """As when a GGUF file's layout is taken for Hugging Face's."""

    def interleave(model):
        q = model.blocks[0].attention.q.weight
        q.copy_(q.view(4, 2, 4, -1).transpose(1, 2).reshape(q.shape))

    wrongly_read(monkeypatch, interleave)
    assert "logits differ from transformers'" in refusal(write(tmp_path))


def test_a_lost_rope_scaling_is_refused(tmp_path, monkeypatch):
    def forget(model):
        model.config = dataclasses.replace(model.config, rope_scaling=None)

    original = KINDS["llama3 scaling"]["rope_parameters"] | {"original_max_position_embeddings": 8192}
    folder = write(tmp_path, rope_parameters=original, max_position_embeddings=131_072)
    wrongly_read(monkeypatch, forget)
    assert "do not train on it" in refusal(folder)


def test_one_wrong_weight_is_refused(tmp_path, monkeypatch):
    wrongly_read(monkeypatch, lambda model: model.blocks[1].mlp.down.weight[3, 5].add_(0.1))
    assert "logits differ" in refusal(write(tmp_path))


def test_logits_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    wrongly_read(monkeypatch, lambda model: model.norm.weight.fill_(torch.nan))
    assert "nan" in refusal(write(tmp_path))


def test_a_model_with_a_short_context_is_probed_within_it(tmp_path):
    assert compare_with_transformers(write(tmp_path, max_position_embeddings=32))["checked"]
