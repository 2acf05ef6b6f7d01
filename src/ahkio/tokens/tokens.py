"""The stage from a domain of a corpus to its token shards, one for one, in parallel and resumable by shard."""

import difflib
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ahkio.core.artifact import write_json
from ahkio.core.config import how
from ahkio.core.errors import UserError
from ahkio.core.machine import cores
from ahkio.core.stage import Facts, Inputs, Known, Stage
from ahkio.text.corpus import heldout_shard, read_shard, train_shards
from ahkio.tokens.shards import Ints, ShardWriter, id_dtype
from ahkio.tokens.tokenizer import Encoder

BATCH_CHARACTERS = 1 << 20  # of text given to the encoder at once
PROOF_CHARACTERS = 1 << 18  # of each shard's own text on which fastokens has to equal tokenizers
BYTES_PER_TOKEN = 4  # a guess for `plan`, until a corpus has been counted


@dataclass(frozen=True, kw_only=True)
class Tokens(Stage):
    """One side of one domain as ids; each document is BOS (if the tokenizer has one) + its text + EOS.

    shard-00000.bin/.idx   from train-00000.jsonl.zst, and so on; see ShardWriter. The held-out side has .bytes too
    shard-00000.json       what was counted in it, written last: the shard is finished
    shards.json            how many shards there will be
    """

    RESUMES = True

    corpus: Stage  # an artifact in the layout of text.corpus
    domain: str
    tokenizer: Stage  # its artifact is a Hugging Face folder
    side: Literal["train", "heldout"] = "train"
    head_bytes: int = 0  # 0: whole documents; else the first so many bytes of each, cut at a character
    bos: str = ""  # texts of the marks' tokens; empty: what the folder's tokenizer says
    eos: str = ""
    fast: bool = how(True)  # fastokens where it is proven equal
    workers: int = how(0)  # processes; 0: one per core
    expect_tokens: int = how(0)  # for `plan`, until the tokens are counted

    def run(self, out: Path, inputs: Inputs) -> Facts:
        encoder = Encoder.load(inputs[self.tokenizer].path, self.bos, self.eos)
        jobs = self._jobs(out, inputs)
        _tidy(out, jobs)
        write_json(out / "shards.json", {"shards": len(jobs)})
        _run_all([job for job in jobs if not _is_done(job)], self.workers or cores())
        facts = _facts([_receipt(job) for job in jobs], encoder)
        if not facts["documents"]:
            raise UserError(
                f"Domain {self.domain!r} has no documents on its {self.side} side; give it a source or a share."
            )
        return {"domain": self.domain, "side": self.side} | facts

    def _jobs(self, out: Path, inputs: Inputs) -> list["Job"]:
        corpus, folder = inputs[self.corpus], inputs[self.tokenizer]
        domains = list(corpus.facts["domains"])
        if self.domain not in domains:
            raise UserError(_no_domain(self.domain, domains))
        sources = (
            train_shards(corpus.path, self.domain)
            if self.side == "train"
            else [heldout_shard(corpus.path, self.domain)]
        )
        origin = f"{corpus.digest} {folder.digest}"
        return [
            Job(
                source=source,
                prefix=out / f"shard-{number:05}",
                origin=origin,
                folder=folder.path,
                bos=self.bos,
                eos=self.eos,
                head_bytes=self.head_bytes,
                keeps_text_bytes=self.side == "heldout",
                fast=self.fast,
            )
            for number, source in enumerate(sources)
            if source.exists()
        ]

    def forecast(self, known: Known) -> Facts:
        domains = known(self.corpus).get("domains", {})
        if domains and self.domain not in domains:
            return {"refusal": _no_domain(self.domain, list(domains))}
        texts = domains.get(self.domain, {}).get(self.side, {})
        size = texts.get("bytes", 0)
        if self.head_bytes:
            size = min(size, self.head_bytes * texts.get("documents", 0))
        tokens = self.expect_tokens or size // BYTES_PER_TOKEN
        basis = "stated in the recipe" if self.expect_tokens else f"{BYTES_PER_TOKEN} bytes per token"
        return {"domain": self.domain, "side": self.side, "tokens": tokens, "estimated": basis} if tokens else {}

    def progress(self, draft: Path) -> str:
        try:
            total = json.loads((draft / "shards.json").read_bytes())["shards"]
        except (OSError, ValueError):
            return ""
        return f"{len(list(draft.glob('shard-*.json')))} of {total} shards"


@dataclass(frozen=True)
class Job:
    """One shard to make at `prefix`, in plain values, since a worker can't import what a recipe defines.

    `origin` names the very corpus and tokenizer, so that a shard made from others is not taken for this one.
    """

    source: Path
    prefix: Path
    origin: str
    folder: Path
    bos: str
    eos: str
    head_bytes: int
    keeps_text_bytes: bool
    fast: bool

    @property
    def receipt(self) -> Path:
        return self.prefix.with_suffix(".json")


def encode_shard(job: Job) -> None:
    """Read a corpus shard, write its token shard, and then its receipt."""
    encoder = _encoder(job.folder, job.bos, job.eos)
    batches = _batches(_texts(job))
    first = next(batches, [])
    sample = _sample(first)
    if job.fast:
        encoder = encoder.proven(sample)
    count: Counter[str] = Counter(round_trip_texts=len(sample), round_trip_mismatches=_mismatches(encoder, sample))
    with ShardWriter(job.prefix, id_dtype(encoder.vocab)) as shard:
        for texts in itertools.chain([first], batches):
            ids, bounds = encoder.encode_flat(texts)
            stream = framed(ids, bounds, encoder.bos, encoder.eos)
            shard.add(stream, np.diff(bounds) + (1 if encoder.bos is None else 2))
            sizes = [len(text.encode()) for text in texts]
            if job.keeps_text_bytes:
                shard.add_text_bytes(sizes)
            count.update(documents=len(texts), tokens=len(stream), text_tokens=len(ids), bytes=sum(sizes))
            count.update(words=sum(len(text.split()) for text in texts))
    write_json(
        job.receipt, {"origin": job.origin, "engine": encoder.engine, "note": encoder.note, "count": dict(count)}
    )


def framed(ids: Ints, bounds: Ints, bos: int | None, eos: int) -> Ints:
    """Documents laid end to end in `ids`, each with `bos` (unless it is None) before it and `eos` after it."""
    if bos is None:
        return np.insert(ids, bounds[1:], eos)
    places = np.column_stack((bounds[:-1], bounds[1:])).ravel()
    return np.insert(ids, places, np.tile(np.array([bos, eos], ids.dtype), len(bounds) - 1))


@lru_cache(maxsize=1)
def _encoder(folder: Path, bos: str, eos: str) -> Encoder:
    return Encoder.load(folder, bos, eos)


def _texts(job: Job) -> Iterator[str]:
    head = job.head_bytes
    for document in read_shard(job.source):
        yield document.text.encode()[:head].decode(errors="ignore") if head else document.text


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sample(texts: list[str]) -> list[str]:
    """The first PROOF_CHARACTERS of `texts`."""
    sample, left = [], PROOF_CHARACTERS
    for text in texts:
        if left <= 0:
            break
        sample.append(text[:left])
        left -= len(text)
    return sample


def _mismatches(encoder: Encoder, texts: list[str]) -> int:
    ids = encoder.encode(texts)
    return sum(encoder.decode(row, skip_special=False) != text for row, text in zip(ids, texts, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Many shards


def _run_all(jobs: list[Job], workers: int) -> None:
    """Make the shards, in processes of their own where there is more than one to make at a time."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            encode_shard(job)
        return
    threads = max(1, cores() // workers)
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=(threads,)) as pool:
            for _ in pool.map(encode_shard, jobs):
                pass
    except BrokenProcessPool as error:
        raise UserError(
            "A tokenising process was killed, perhaps for want of memory; build again to go on from the finished "
            "shards, with fewer workers if it happens again."
        ) from error


def _start_worker(threads: int) -> None:
    """Set a worker's threads, and let it go silently with Ctrl-C and with its parent, however that ends."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tidy(out: Path, jobs: list[Job]) -> None:
    """Remove what an earlier attempt left that is of no use: shards of another corpus, and torn ones."""
    kept = {job.prefix.name for job in jobs if _is_done(job)}
    for path in out.glob("shard-*"):
        if path.name.partition(".")[0] not in kept or path.suffix == ".tmp":
            path.unlink()


def _is_done(job: Job) -> bool:
    return job.receipt.exists() and bool(_receipt(job)["origin"] == job.origin)


def _receipt(job: Job) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(job.receipt.read_bytes())
    return receipt


def _facts(receipts: list[dict[str, Any]], encoder: Encoder) -> Facts:
    count: Counter[str] = Counter()
    for receipt in receipts:
        count.update(receipt["count"])
    return {
        **{key: count[key] for key in ("tokens", "text_tokens", "documents", "bytes", "words")},
        "tokens_per_word": round(count["text_tokens"] / max(1, count["words"]), 4),
        "bytes_per_token": round(count["bytes"] / max(1, count["text_tokens"]), 4),
        **{key: count[key] for key in ("round_trip_texts", "round_trip_mismatches")},
        "dtype": id_dtype(encoder.vocab).name,
        "shards": len(receipts),
        "bos": encoder.bos,
        "eos": encoder.eos,
        "vocab": encoder.vocab,
        "engine": " and ".join(sorted({receipt["engine"] for receipt in receipts})),
        "engine_notes": sorted({receipt["note"] for receipt in receipts} - {""}),
        "tokenizer_sha256": encoder.sha256,
    }


def _no_domain(name: str, domains: list[str]) -> str:
    near = difflib.get_close_matches(name, domains, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"The corpus has no domain {name!r}; it has: {', '.join(domains)}.{hint}"
