"""The steps of MinHash in datatrove, its signatures with a faster hot loop."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import NUMBERS_PATTERN, PUNCTUATION_TRANS
from datatrove.utils.word_tokenizers import WordTokenizer

from ahkio.core.artifact import write_json
from ahkio.text.corpus import read_shard

PUNCTUATION = re.compile(f"[{re.escape(''.join(map(chr, PUNCTUATION_TRANS)))}]+")
PRIME = np.uint64((1 << 61) - 1)  # datatrove's modulus
BLOCK = 512  # shingles at once: their values fit in a core's cache
RECORDS_AT_ONCE = 256  # of each file, when all files of a bucket are read side by side

Shingles = npt.NDArray[np.uint64]


class Shards(PipelineStep):
    """Reads each task's shards, and writes how many documents each has to `counts`/TASK.json."""

    type, name = "READER", "shards"

    def __init__(self, parts: Sequence[Sequence[Path]], counts: Path) -> None:
        super().__init__()
        self.parts, self.counts = parts, counts

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        documents = []
        for shard in self.parts[rank]:
            documents.append(0)
            for document in read_shard(shard):
                yield Document(document.text, document.id)
                documents[-1] += 1
        self.counts.mkdir(parents=True, exist_ok=True)
        write_json(self.counts / f"{rank:05}.json", documents)


class Spaces(WordTokenizer):
    """Words are what stands between spaces, in any language that has them."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class Signature(MinhashDedupSignature):
    """datatrove's signatures with words between spaces: the same files as from its own step given `Spaces`."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, Spaces())

    def get_shingles(self, text: str) -> Shingles:
        words = words_of(text)
        runs = zip(*(words[first:] for first in range(self.config.n_grams)), strict=False)
        return np.fromiter(map(self._hash_func, map(" ".join, runs)), np.uint64).reshape(-1, 1)

    def get_signature(self, shingles: Shingles) -> list[list[int]]:
        """The least value of every hash function over the shingles, in lists by bucket."""
        a_H1, b_H1 = (parameter.T for parameter in self.parameters)
        precise = np.uint64(min(self.config.hash_config.max, int(PRIME)))
        least_H = np.full(self.num_hashes, precise)
        for first in range(0, len(shingles), BLOCK):
            value_HN = a_H1 * shingles[first : first + BLOCK].T
            value_HN += b_H1
            rest_HN = value_HN >> np.uint64(61)
            value_HN &= PRIME
            value_HN += rest_HN  # that is value modulo PRIME, or PRIME more
            np.subtract(value_HN, PRIME, out=rest_HN)  # wraps around to a large number where it was not more
            np.minimum(value_HN, rest_HN, out=value_HN)
            value_HN &= precise
            np.minimum(least_H, value_HN.min(1), out=least_H)
        least: list[list[int]] = least_H.reshape(self.config.num_buckets, -1).tolist()
        return least


def words_of(text: str) -> list[str]:
    """The words of datatrove's `simplify_text`, at three times its speed: lower-cased, without punctuation and
    diacritics, numbers as 0."""
    text = PUNCTUATION.sub(" ", NUMBERS_PATTERN.sub("0", text.lower()))
    if not text.isascii():
        text = unicodedata.normalize("NFD", text)
        for mark in {letter for letter in set(text) if unicodedata.category(letter) == "Mn"}:
            text = text.replace(mark, "")
    return text.split()


# ---------------------------------------------------------------------------------------------------------------------
# The steps


@dataclass(frozen=True)
class Step:
    """A pipeline that datatrove's executors run: local, Slurm or Ray, each after the one before."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int


def steps(
    parts: Sequence[Sequence[Path]],
    folder: Path,
    *,
    words: int,
    buckets: int,
    hashes_per_bucket: int,
    precision: Literal[32, 64],
    seed: int,
) -> list[Step]:
    """From shards, in a list for each task, to `folder`/clusters: TASK.clusters holds pairs of little-endian uint32, a
    document's place in its task and the number of its cluster, of all documents that are in one.

    Memory of a task: signatures take RECORD bytes for each of its documents, when they sort a bucket at a time;
    buckets RECORD * RECORDS_AT_ONCE for each of `parts`; clusters, one task, a few hundred bytes for each document that
    is in a cluster. On disk: RECORD bytes for each document and bucket. A RECORD is 68 bytes at FineWeb's settings.
    """
    config = MinhashConfig(words, buckets, hashes_per_bucket, seed, hash_config=HashConfig(precision))
    signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "pairs", "clusters"))
    read = Shards(parts, folder / "counts")
    sign = Signature(signatures, config)
    pair = MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=RECORDS_AT_ONCE)
    join = MinhashDedupCluster(pairs, clusters, config, save_cluster_id=True, lines_to_buffer=RECORDS_AT_ONCE)
    return [Step("signatures", [read, sign], len(parts)), Step("pairs", [pair], buckets), Step("clusters", [join], 1)]
