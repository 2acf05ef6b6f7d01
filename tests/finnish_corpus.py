"""Help texts in Finnish and English as a corpus, and byte-level BPE tokenizers that were trained on the English."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ahkio.core.stage import Facts, Inputs, Stage
from ahkio.text.corpus import Corpus, Domain
from ahkio.text.sources import JsonLines

DATA = Path(__file__).parents[1] / "data"
SPECIAL = ("<|endoftext|>", "<|start|>")
ADDED = "<note>"  # an added token that is not special
SIZE = 1000


def source(language: str) -> JsonLines:
    return JsonLines(path=str(DATA / f"{language}.jsonl.gz"), where=("source", ("gnome-help",)))


CORPUS = Corpus(
    domains=(
        Domain("finnish", (source("fi"),), held_out=0.1),
        Domain("english", (source("en"),), held_out=0.1),
    )
)


def english() -> list[str]:
    with gzip.open(DATA / "en.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows if row["source"] == "gnome-help"]


@dataclass(frozen=True, kw_only=True)
class EnglishTokenizer(Stage):
    """kind: "in" has its added tokens at the end of the vocabulary; "out" has them behind it and ignores merges, as
    Llama 3; "text" writes merges as files of old do."""

    kind: str = "in"

    def run(self, out: Path, inputs: Inputs) -> Facts:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(english(), trainer)
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
        tokenizer.add_tokens([AddedToken(ADDED, special=False)])
        data = json.loads(tokenizer.to_str())
        if self.kind == "out":
            data["model"]["ignore_merges"] = True
        else:
            data["model"]["vocab"] |= {token["content"]: token["id"] for token in data["added_tokens"]}
        if self.kind == "text":
            data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
        (out / "tokenizer.json").write_text(json.dumps(data))
        marks = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[0]}
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | marks
        (out / "tokenizer_config.json").write_text(json.dumps(config))
        return {}
