"""What training starts from has to fit what it reads."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
from small_run import TRAIN, WORDS, SmallModel, metrics, quiet

from ahkio.core.errors import UserError
from ahkio.core.stage import build


@dataclass(frozen=True, kw_only=True)
class OtherTokenizer(SmallModel):
    """The small model with two bytes' tokens exchanged."""

    def run(self, out, inputs):
        facts = super().run(out, inputs)
        path = out / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        vocab = tokenizer["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        path.write_text(json.dumps(tokenizer))
        return facts


def test_tokens_of_another_tokenizer_are_refused(store):
    with pytest.raises(UserError, match=r"'fi' was made with another tokenizer"):
        build(replace(TRAIN, start=OtherTokenizer()), store, quiet)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_learns_the_same(unbroken, store):
    made = build(replace(TRAIN, compile=True), store, quiet)
    for mine, plain in zip(metrics(made.path), metrics(unbroken.path), strict=True):
        assert mine["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert set(made.facts["ledger"]) == set(WORDS)
