"""JSON lines to .bin/.idx in the vocabulary of Llama 3: whole commands, from the start of a process to its exit.

The text: Finnish, English and code of data/; a document's lines are drawn from all of its kind, and one word in 25 was
put together from the halves of two others, so that words go on being new as in a true corpus.

Against Megatron-LM's tools/preprocess_data.py, which is not in the wheel of megatron-core: here is its loop, with its
own builder (json.loads, the tokenizer of transformers, Pool.imap by 32 lines, one document at a time), on all cores;
its files and ours have to be equal byte for byte. And against datatrove's tokens pipeline, which takes the input cut in
as many files as it has tasks, writes as many shards, and leaves out BOS.
"""

import base64
import gzip
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from bench import OURS, Contender, Line, Round, main

from ahkio.core.machine import cores

DATA = Path(tempfile.gettempdir()) / "ahkio-bench-tokenise"
CORPUS = Path(__file__).parents[1] / "data"
MEGATRON, DATATROVE = "megatron preprocess_data", "datatrove"
WHOLE, SLICE, TINY = 200_000_000, 6_000_000, 500_000  # bytes of input
H100_TOKENS = 10_000  # a second, trained on the 8B: published figures are 6,667 to 9,800
EOS = "<|end_of_text|>"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LINES = [
    Line(
        setting="slice",
        title="JSONL to .bin/.idx, Llama 3 vocabulary, whole command over 200 MB",
        unit="MB/s",
        contenders=(OURS, MEGATRON),
        bar=15.0,
        goal=40.0,
        rounds=3,
        note="the rival's time over 6 MB, drawn out in a straight line; files over 6 MB equal byte for byte",
        only_asked=True,
    ),
    Line(
        setting="whole",
        title="JSONL to .bin/.idx, Llama 3 vocabulary, whole command over 200 MB, rivals too",
        unit="MB/s",
        contenders=(OURS, MEGATRON, DATATROVE),
        bar=15.0,
        goal=40.0,
        rounds=1,
        note="one round; files equal byte for byte to Megatron's; half of our 3 s is the loading of the tokenizer",
    ),
    Line(
        setting="waits",
        title="tokens a second of that command on this machine, where an H100 trains the 8B on up to 10,000",
        unit="tokens/s",
        contenders=(OURS,),
        bar=100 * H100_TOKENS,
        goal=1000 * H100_TOKENS,
        absolute=True,
        rounds=3,
    ),
]


# ---------------------------------------------------------------------------------------------------------------------
# The text and the tokenizer


def text_of(size: int) -> Path:
    """The first `size` bytes of the text, to the end of a line."""
    path = DATA / f"{size}.jsonl"
    if not path.exists():
        draft, left = path.with_suffix(".tmp"), size
        with open(draft, "wb") as file:
            for line in lines():
                left -= file.write(line)
                if left <= 0:
                    break
        draft.rename(path)
    return path


def lines() -> Iterator[bytes]:
    draw = random.Random(0)
    kinds = [kind(name, draw) for name in ("fi", "en", "code")]
    for number in itertools.count():
        counts, known = kinds[number % len(kinds)]
        text = "\n".join(draw.choices(known, k=draw.choice(counts)))
        yield orjson.dumps({"id": str(number), "text": text}) + b"\n"


def kind(name: str, draw: random.Random) -> tuple[list[int], list[str]]:
    """How many lines the documents have; and the lines eight times over, with other new words each time."""
    with gzip.open(CORPUS / f"{name}.jsonl.gz") as file:
        texts = [orjson.loads(line)["text"].split("\n") for line in file]
    original = [line for text in texts for line in text]
    words = " ".join(original).split(" ")
    known = []
    for line in original * 8:
        changed = line.split(" ")
        for at in range(len(changed)):
            if draw.random() < 1 / 25:
                one, other = draw.choice(words), draw.choice(words)
                changed[at] = one[: len(one) // 2] + other[len(other) // 2 :]
        known.append(" ".join(changed))
    return [len(text) for text in texts], known


def tokenizer_folder() -> Path:
    """The tokenizer of Llama 3 as a Hugging Face folder, from the ranks in llama-models."""
    folder = DATA / "llama3"
    if not folder.exists():
        draft = DATA / "llama3.tmp"
        draft.mkdir(parents=True, exist_ok=True)
        llama3_tokenizer().save(str(draft / "tokenizer.json"))
        marks = {"bos_token": "<|begin_of_text|>", "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
        (draft / "tokenizer_config.json").write_text(json.dumps(marks))
        draft.rename(folder)
    return folder


def llama3_tokenizer() -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    found = importlib.util.find_spec("llama_models")
    assert found is not None
    assert found.submodule_search_locations is not None
    ranks_file = Path(next(iter(found.submodule_search_locations))) / "llama3" / "tokenizer.model"
    ranks = {base64.b64decode(word): int(rank) for word, rank in map(str.split, ranks_file.read_text().splitlines())}
    letters = bytes_to_unicode()
    written = {word: "".join(letters[byte] for byte in word) for word in ranks}
    halves = [
        (rank, ranks[word[:at]], ranks[word[at:]], written[word[:at]], written[word[at:]])
        for word, rank in ranks.items()
        for at in range(1, len(word))
        if word[:at] in ranks and word[at:] in ranks
    ]
    merges = [(left, right) for _, _, _, left, right in sorted(halves)]
    vocab = {written[word]: rank for word, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(254)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|begin_of_text|>", EOS, *reserved)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", len(ranks))]
    )
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def ours(size: int) -> Round:
    inputs, folder, prefix = text_of(size), tokenizer_folder(), DATA / f"ours-{size}"
    command = ["-m", "ahkio", "tokenize", str(inputs), "--tokenizer", str(folder), "--output", str(prefix)]
    return {
        "seconds": seconds_of(command),
        "check": digest(prefix),
        "tokens": prefix.with_suffix(".bin").stat().st_size // 4,
    }


def megatron(size: int) -> Round:
    inputs, folder, prefix = text_of(size), tokenizer_folder(), DATA / f"megatron-{size}"
    return {
        "seconds": seconds_of([__file__, "--megatron", str(inputs), str(folder), str(prefix)]),
        "check": digest(prefix),
    }


def datatrove(size: int) -> Round:
    folder, parts = tokenizer_folder(), DATA / f"parts-{size}"
    if not parts.exists():
        parts.mkdir()
        whole = text_of(size).read_bytes().splitlines(keepends=True)
        for part in range(cores()):
            (parts / f"{part}.jsonl").write_bytes(b"".join(whole[part :: cores()]))
    out = DATA / f"datatrove-{size}"
    shutil.rmtree(out, ignore_errors=True)
    return {"seconds": seconds_of([__file__, "--datatrove", str(parts), str(folder), str(out)])}


def seconds_of(command: list[str]) -> float:
    began = perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", *command], check=True, capture_output=True)
    return perf_counter() - began


def digest(prefix: Path) -> str:
    found = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        found.update(prefix.with_suffix(suffix).read_bytes())
    return found.hexdigest()


class MegatronEncoder:
    """Encoder of preprocess_data.py, for --tokenizer-type HuggingFaceTokenizer --append-eod."""

    tokenizer: Any = None

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def initializer(self) -> None:
        from transformers import AutoTokenizer

        MegatronEncoder.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def encode(self, json_line: str) -> tuple[dict[str, list[int]], dict[str, list[int]], int]:
        data, ids, lens = json.loads(json_line), {}, {}
        for key in ("text",):
            doc_ids, sentence_lens = [], []
            for sentence in [data[key]]:
                sentence_ids = MegatronEncoder.tokenizer(sentence).input_ids
                if len(sentence_ids) > 0:
                    doc_ids.extend(sentence_ids)
                    sentence_lens.append(len(sentence_ids))
            if len(doc_ids) > 0:
                doc_ids.append(MegatronEncoder.tokenizer.eos_token_id)
                sentence_lens[-1] += 1
            ids[key], lens[key] = doc_ids, sentence_lens
        return ids, lens, len(json_line)


def run_megatron(inputs: str, folder: str, prefix: str) -> None:
    """Partition.process_json_file of preprocess_data.py."""
    from megatron.core.datasets import indexed_dataset

    encoder = MegatronEncoder(folder)
    encoder.initializer()
    dtype = indexed_dataset.DType.optimal_dtype(len(MegatronEncoder.tokenizer))
    with open(inputs, encoding="utf-8") as fin, multiprocessing.Pool(cores(), initializer=encoder.initializer) as pool:
        builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for doc, sentence_lens, _ in pool.imap(encoder.encode, fin, 32):
            builder.add_document(doc["text"], sentence_lens["text"])
        builder.finalize(f"{prefix}.idx")


def run_datatrove(parts: str, folder: str, out: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

    tokenizer = MegatronDocumentTokenizer(out, tokenizer_name_or_path=f"{folder}/tokenizer.json", eos_token=EOS)
    pipeline = [JsonlReader(parts), tokenizer]
    LocalPipelineExecutor(pipeline, tasks=cores(), workers=cores(), logging_dir=f"{out}/logs").run()


# ---------------------------------------------------------------------------------------------------------------------
# Rounds


def contender(setting: str, name: str) -> Contender:
    """The first round, which is not counted, is a small one: it shows what a start takes."""
    run = {OURS: ours, MEGATRON: megatron, DATATROVE: datatrove}[name]
    DATA.mkdir(exist_ok=True)
    sliced = setting == "slice"
    first = run(TINY if name != OURS or not sliced else SLICE)
    sizes = itertools.chain([None], itertools.repeat(SLICE if sliced and name != OURS else WHOLE))

    def one() -> Round:
        size = next(sizes)
        found = run(size) if size else first
        seconds = found["seconds"]
        if size == SLICE:
            seconds += (seconds - first["seconds"]) * (WHOLE - SLICE) / (SLICE - TINY)
        check = first.get("check") if sliced and name == OURS else found.get("check")
        rate = (found["tokens"] if setting == "waits" else WHOLE / 1e6) / seconds
        return {"value": rate, "check": check}

    return one


if __name__ == "__main__":
    if "--megatron" in sys.argv:
        run_megatron(*sys.argv[2:])
    elif "--datatrove" in sys.argv:
        run_datatrove(*sys.argv[2:])
    else:
        main(__file__, LINES, contender)
