"""What a tokenizer makes of a text: tokens per word and per byte, words that stay whole, ids that stay unused."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ahkio.core.stage import Facts
from ahkio.tokens.encode import batches, head
from ahkio.tokens.tokenizer import Encoder

PROOF_CHARACTERS = 1 << 16  # of the text on which fastokens has to equal tokenizers
BARE = re.compile(r"\w(?:\S*\w)?")  # a word without the punctuation at its edges
BILLION = 1_000_000_000


def measure(texts: Iterable[str], encoder: Encoder) -> Facts:
    """Count `texts` and the tokens that they become; a word is a run of what is not white space.

    whole_words: the share of words that are one token each, with the space before and without punctuation at the edges.
    unused: the share of the vocabulary that the texts never use. tokens_of_1b_words: at this number of tokens per word.
    """
    count: Counter[str] = Counter()
    used = np.zeros(encoder.vocab, bool)
    for batch in batches(texts):
        if not count:
            encoder = encoder.proven(head(batch, PROOF_CHARACTERS))
        ids, _ = encoder.encode_flat(batch)
        used[ids] = True
        words = Counter(word for text in batch for word in text.split())
        count.update(documents=len(batch), bytes=sum(len(text.encode()) for text in batch), words=words.total())
        count.update(tokens=len(ids), **_whole(words, encoder))
    vocab = len(encoder.tokenizer.get_vocab())
    return {
        **{key: count[key] for key in ("documents", "bytes", "words", "tokens")},
        "vocab": vocab,
        "tokens_per_word": count["tokens"] / max(1, count["words"]),
        "bytes_per_token": count["bytes"] / max(1, count["tokens"]),
        "whole_words": count["whole"] / max(1, count["bare"]),
        "unused": 1 - int(used.sum()) / vocab,
        "tokens_of_1b_words": round(BILLION * count["tokens"] / max(1, count["words"])),
        "engine": encoder.engine,
    }


def _whole(words: Counter[str], encoder: Encoder) -> dict[str, int]:
    """How many of `words` have a letter or digit ("bare"), and how many of those are one token ("whole")."""
    bare: Counter[str] = Counter()
    for word, times in words.items():
        if found := BARE.search(word):
            bare[found[0]] += times
    space = "" if _brings_space(encoder) else " "
    _, bounds = encoder.encode_flat([space + word for word in bare])
    whole = np.diff(bounds) == 1
    return {"bare": bare.total(), "whole": int(whole @ np.fromiter(bare.values(), np.int64, len(bare)))}


def _brings_space(encoder: Encoder) -> bool:
    """Whether the tokenizer puts a space before a text by itself, as those of SentencePiece do."""
    first = encoder.tokenizer.encode("a", add_special_tokens=False).tokens[:1]
    return bool(first) and first[0].startswith("\N{LOWER ONE EIGHTH BLOCK}")
