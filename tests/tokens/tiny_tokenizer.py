"""A byte-level BPE of some 300 ids, trained on the spot, as a Hugging Face folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ahkio.core.stage import Facts, Inputs, Stage

SPECIAL = ("<|endoftext|>", "<|start|>")
TEXTS = [
    "Hyvää yötä, sanoi yö ja sulki oven.",
    "The night said good night and shut the door.",
    "x = [1, 22, 333]\n",
] * 4


def write_tokenizer(folder: Path, vocab_size: int = 300) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    tokenizer.enable_truncation(5)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<|start|>"}, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    return folder


@dataclass(frozen=True, kw_only=True)
class TinyTokenizer(Stage):
    def run(self, out: Path, inputs: Inputs) -> Facts:
        write_tokenizer(out)
        return {}
