"""What of the held-out side repeats in training: runs of words found by hash, and the lines they cover cut out.

Only hashes of the held-out side are held in memory; training streams past them.
"""

import functools
import re
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"\w+")
SHORTEST_LINE_WORDS = 5  # a line with fewer is too common a phrase to tell anything
FACTOR = 0x9E3779B97F4A7C15  # odd, so that no power of it loses bits in 64

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Lines = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Grams:
    """Runs of words of a text: the hash of each, its first word and its length in words."""

    keys: Keys
    starts: Ints
    lengths: Ints
    line_words: Ints  # how many words each line of the text has


def grams_of(text: str, size: int, lines: bool) -> Grams:
    """All runs of `size` lower-cased words; with `lines`, also each whole line of 5 or more that is shorter.

    The hash of words w is the sum of crc32(w_j) * FACTOR^(j+1) modulo 2^64.
    """
    words = [words_of(line) for line in text.split("\n")]
    words_L = np.array([len(line) for line in words], np.int64)
    codes_W = codes_of(word for line in words for word in line)
    runs = [runs_of(codes_W, (size,))]
    if lines and len(codes_W):
        runs.append(_short_lines(codes_W, words_L[words_L > 0], _powers(size)))
    keys, starts, lengths = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    return Grams(keys, starts, lengths, words_L)


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def codes_of(words: Iterable[str]) -> Keys:
    return np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64)


def runs_of(codes_W: Keys, sizes: Collection[int]) -> tuple[Keys, Ints, Ints]:
    """Of all runs of so many words, for each of `sizes`: the hash, the first word and the length in words."""
    keys, runs = np.zeros(len(codes_W) + 1, np.uint64), []
    for j, power in enumerate(_powers(max(sizes))[: len(codes_W)]):
        keys = keys[:-1] + codes_W[j:] * power
        if j + 1 in sizes:
            runs.append((keys, np.arange(len(keys)), np.full(len(keys), j + 1)))
    none = np.empty(0, np.int64)
    keys, starts, lengths = (np.concatenate(parts) for parts in zip((keys[:0], none, none), *runs, strict=True))
    return keys, starts, lengths


@functools.cache
def _powers(count: int) -> Keys:
    return np.array([pow(FACTOR, j + 1, 1 << 64) for j in range(count)], np.uint64)


def _short_lines(codes_W: Keys, words_L: Ints, powers_N: Keys) -> tuple[Keys, Ints, Ints]:
    starts_L = np.cumsum(words_L) - words_L
    place_W = np.arange(len(codes_W)) - np.repeat(starts_L, words_L)
    keys_L = np.add.reduceat(codes_W * powers_N[np.minimum(place_W, len(powers_N) - 1)], starts_L)
    short = (words_L >= SHORTEST_LINE_WORDS) & (words_L < len(powers_N))
    return keys_L[short], starts_L[short], words_L[short]


def distinct(keys: Iterable[Keys]) -> Keys:
    """All of them, sorted and each once."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *keys]))


class Repeats:
    """The runs of words of the held-out side, and which of them have been seen in training."""

    def __init__(self, held_out: Iterable[Grams], size: int) -> None:
        self.size = size
        self.keys = distinct(grams.keys for grams in held_out)
        self.seen = np.zeros(len(self.keys), bool)

    @classmethod
    def of(cls, keys: Keys, size: int) -> "Repeats":
        """Those with these `keys`, sorted and each once."""
        repeats = cls([], size)
        repeats.keys, repeats.seen = keys, np.zeros(len(keys), bool)
        return repeats

    def see(self, text: str) -> None:
        """Note which held-out runs stand in this training text."""
        if len(self.keys):
            keys_G = grams_of(text, self.size, lines=True).keys
            index_G = self._index(keys_G)
            self.seen[index_G[self.keys[index_G] == keys_G]] = True

    def repeated_lines(self, grams: Grams) -> Lines:
        """For each line of a held-out text whether more than half of its words lie in runs seen in training."""
        hit_G = self.seen[self._index(grams.keys)] if len(self.keys) else np.zeros(0, bool)
        starts = grams.starts[hit_G]
        edges = np.zeros(int(grams.line_words.sum()) + 1, np.int64)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + grams.lengths[hit_G], -1)
        marked_before = np.concatenate([[0], np.cumsum(np.cumsum(edges)[:-1] > 0)])
        ends_L = np.cumsum(grams.line_words)
        marked_L = marked_before[ends_L] - marked_before[ends_L - grams.line_words]
        repeated: Lines = 2 * marked_L > grams.line_words
        return repeated

    def _index(self, keys_G: Keys) -> Ints:
        return np.minimum(np.searchsorted(self.keys, keys_G), len(self.keys) - 1)
