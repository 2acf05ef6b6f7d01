"""The stage from a domain of a corpus to its token shards, one for one, in parallel and resumable by shard."""

import difflib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ahkio.core.artifact import write_json
from ahkio.core.config import how
from ahkio.core.errors import UserError
from ahkio.core.machine import cores
from ahkio.core.pool import in_order
from ahkio.core.stage import Facts, Inputs, Known, Stage
from ahkio.text.corpus import heldout_shard, read_shard, train_shards
from ahkio.tokens.encode import batches, encoder_of, framed, head
from ahkio.tokens.shards import ShardWriter, id_dtype
from ahkio.tokens.tokenizer import Encoder

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
        load = partial(encoder_of, inputs[self.tokenizer].path, self.bos, self.eos, self.fast)
        for _ in in_order(encode_shard, [job for job in jobs if not _is_done(job)], self.workers or cores(), load):
            pass
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
    encoder = encoder_of(job.folder, job.bos, job.eos, job.fast)
    found = batches(_texts(job))
    first = next(found, [])
    sample = head(first, PROOF_CHARACTERS)
    if job.fast:
        encoder = encoder.proven(sample)
    count: Counter[str] = Counter(round_trip_texts=len(sample), round_trip_mismatches=_mismatches(encoder, sample))
    with ShardWriter(job.prefix, id_dtype(encoder.vocab)) as shard:
        for texts in chain([first], found):
            ids, bounds = encoder.encode_flat(texts)
            stream, lengths = framed(ids, bounds, encoder.bos, encoder.eos)
            shard.add(stream, lengths)
            sizes = [len(text.encode()) for text in texts]
            if job.keeps_text_bytes:
                shard.add_text_bytes(sizes)
            count.update(documents=len(texts), tokens=len(stream), text_tokens=len(ids), bytes=sum(sizes))
            count.update(words=sum(len(text.split()) for text in texts))
    write_json(
        job.receipt, {"origin": job.origin, "engine": encoder.engine, "note": encoder.note, "count": dict(count)}
    )


def _texts(job: Job) -> Iterator[str]:
    head = job.head_bytes
    for document in read_shard(job.source):
        yield document.text.encode()[:head].decode(errors="ignore") if head else document.text


def _mismatches(encoder: Encoder, texts: list[str]) -> int:
    ids = encoder.encode(texts)
    return sum(encoder.decode(row, skip_special=False) != text for row, text in zip(ids, texts, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# All shards


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
