"""More merges for a byte-level BPE: its training goes on where it stopped, over the pieces that it gives today.

A BPE applies, again and again, the earliest merge of its list that fits anywhere in a word. Merges at the end of the
list thus wait until no older one fits, and what they make is in no older merge: a word is cut as before, and then some
of its pieces are joined. So no word gets more tokens than it had, and one without a pair that a new merge joins keeps
its ids. A stretch of pieces is cut by itself as it is cut inside a word, so each new token comes out of its own text.

To count pairs of old pieces rather than of bytes, each piece is one character of the text that `tokenizers` trains on.
"""

import json
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ahkio.tokens.encode import batches
from ahkio.tokens.shards import Ints

FIRST_CHARACTER = 0x10000  # that of piece 0; above all white space and surrogates, with room for a million pieces
NO_PAIR = (1 << 64) - 1  # above the number of any pair
SEEN_TWICE = 2  # at least, for a pair to become a merge

Pair = tuple[int, int]


class Merge(NamedTuple):
    """Two neighbours that become one token, each given by the old pieces that it is made of."""

    left: tuple[int, ...]
    right: tuple[int, ...]


def learn(tokenizer: Tokenizer, texts: Iterable[str], size: int, apart: Set[Pair]) -> list[Merge]:
    """At most `size` merges, the most frequent first, fewer if the texts have no more; none joins a pair of `apart`."""
    lines = list(_as_characters(tokenizer, texts, apart))
    alphabet = set().union(*lines) - {"\n"}
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + size, min_frequency=SEEN_TWICE, show_progress=False)
    trained.train_from_iterator(lines, trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    return [Merge(_pieces(left), _pieces(right)) for left, right in merges]


def pairs_in(tokenizer: Tokenizer, texts: Iterable[str]) -> set[Pair]:
    """Which pieces stand side by side within words of `texts`. If none are joined, the texts keep their ids."""
    keys: set[int] = set()
    for ids, inside in _words(tokenizer, texts):
        keys.update(_keys(ids)[inside].tolist())
    return {(key >> 32, key & 0xFFFFFFFF) for key in keys}


def pairs_of_dead(data: dict[str, Any]) -> set[Pair]:
    """The first two pieces of each token of a tokenizer.json that no merges lead to, such as a special token.

    Kept apart, no new merge can make the text of a token that there is already.
    """
    tokenizer = Tokenizer.from_str(json.dumps(data | {"model": data["model"] | {"ignore_merges": False}}))
    cuts = ([piece.id for piece in tokenizer.model.tokenize(token)] for token in data["model"]["vocab"])
    return {(cut[0], cut[1]) for cut in cuts if len(cut) > 1}


# ---------------------------------------------------------------------------------------------------------------------
# Words of pieces


def _words(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[Ints, Ints]]:
    """The ids of each text, and for each neighbour but the last whether the next is in the same word."""
    for batch in batches(texts):
        for row in tokenizer.encode_batch(batch, add_special_tokens=False):
            word = np.array(row.word_ids, np.int64)
            yield np.array(row.ids, np.uint64), word[1:] == word[:-1]


def _keys(ids: Ints) -> Ints:
    """Each pair of neighbours as one number."""
    return ids[:-1] << np.uint64(32) | ids[1:]


def _as_characters(tokenizer: Tokenizer, texts: Iterable[str], apart: Set[Pair]) -> Iterator[str]:
    """Each text with a character for each piece, and a line end between words and between pieces kept apart."""
    keys = np.array([*sorted(left << 32 | right for left, right in apart), NO_PAIR], np.uint64)
    for ids, inside in _words(tokenizer, texts):
        parted = keys[np.searchsorted(keys, _keys(ids))] == _keys(ids)
        codes = np.insert(ids + np.uint64(FIRST_CHARACTER), np.flatnonzero(~inside | parted) + 1, ord("\n"))
        yield codes.astype("<u4").tobytes().decode("utf-32-le")


def _pieces(characters: str) -> tuple[int, ...]:
    return tuple(ord(character) - FIRST_CHARACTER for character in characters)
