"""A small world for the tests of evaluation: held-out text, a tokenizer trained on it, and random Llamas."""

import io
import json
import random
from dataclasses import dataclass

import zstandard

from ahkio.core.stage import Stage

FINNISH = "yö päivä metsä järvi poro ahkio lumi tuli kala vene saari polku kuu aurinko tähti talo ovi käsi sana laulu"
ENGLISH = (
    "night day forest lake reindeer sledge snow fire fish boat island path moon sun star house door hand word song"
)
EOS, BOS = "<|end|>", "<|begin|>"


def quiet(text): ...


def sentences(seed, words, count, length):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words.split(), k=length)) + "." for _ in range(count)]


def pairs(count):
    finnish, english = sentences("fi", FINNISH, count, 7), sentences("en", ENGLISH, count, 7)
    return [{"text": f"{e}\n{f}", "en": e, "fi": f} for e, f in zip(english, finnish, strict=True)]


def documents(count, length=12):
    return [{"text": "\n".join(sentences(f"document {n}", FINNISH, length, 10))} for n in range(count)]


@dataclass(frozen=True, kw_only=True)
class SmallCorpus(Stage):
    """The held-out sides of two domains, in the layout of text.corpus."""

    pairs: int = 40
    documents: int = 12
    sentences: int = 12
    columns: tuple[str, ...] = ("en", "fi")

    def run(self, out, inputs):
        domains = {"pairs": pairs(self.pairs), "finnish": documents(self.documents, self.sentences)}
        for name, rows in domains.items():
            kept = [{k: v for k, v in row.items() if k == "text" or k in self.columns} for row in rows]
            write_heldout(out / name / "heldout.jsonl.zst", name, kept)
        return {"domains": {name: {} for name in domains}}


def write_heldout(path, name, rows):
    buffer = io.StringIO()
    for number, row in enumerate(rows):
        buffer.write(json.dumps({"id": f"{name}/{number}", "group": str(number)} | row) + "\n")
    path.parent.mkdir(parents=True)
    path.write_bytes(zstandard.compress(buffer.getvalue().encode()))


@dataclass(frozen=True, kw_only=True)
class SmallModel(Stage):
    """A random Llama saved by transformers with a byte-level BPE tokenizer of 320 tokens."""

    seed: int = 0
    max_positions: int = 512

    def run(self, out, inputs):
        save_tokenizer(out)
        save_llama(out, self.seed, self.max_positions)
        return {"model": f"small-{self.seed}"}


def save_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[BOS, EOS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([FINNISH, ENGLISH] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_llama(folder, seed, max_positions):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        initializer_range=0.4,  # far from uniform, so that rankings and greedy choices are clear
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
