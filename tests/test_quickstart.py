"""The whole life of a model, by the quickstart's own recipe and real data, with a tiny random model and two steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ahkio.model.hub import save_model
from ahkio.model.llama import random_model
from ahkio.model.shape import LlamaConfig

ROOT = Path(__file__).parent.parent
MARK = "<|endoftext|>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random Llama and a byte-level tokenizer of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[MARK], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([(ROOT / "data" / "NOTICE.md").read_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": MARK, "eos_token": MARK}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))
    shape = LlamaConfig(layers=2, width=32, heads=4, kv_heads=2, head_width=8, ffn=64, vocab=300, max_positions=8192)
    save_model(random_model(shape, seed=0), folder, torch.float32, bos=0, eos=0)
    return folder


def ahkio(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ahkio", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=os.environ | {"COLUMNS": "200"}
    )


@pytest.fixture(scope="module")
def life(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of names that people use, and the words of the command that made it."""
    runs = tmp_path_factory.mktemp("runs")
    words = [
        "recipes/quickstart.py", f"base.model={tiny}", "base.shape=none", "train.steps=2", "train.rows.length=128",
        "train.heldout_documents=1", "questions.items=4", "questions.shots=1", "summary.promises=()",
        f"model.location={runs}/quickstart/model", "--runs", str(runs),
    ]  # fmt: skip
    for stage in ("before", "after"):
        words += [f"{stage}.documents=2", f"{stage}.prompt_tokens=4"]
    done = ahkio("build", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs / "quickstart", words


def test_the_names_that_people_use_point_at_what_was_made(life: tuple[Path, list[str]]) -> None:
    folder, _ = life
    assert (folder / "model" / "config.json").is_file()
    assert (folder / "model" / "model.safetensors").is_file()
    assert (folder / "base" / "model.safetensors").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"].keys() == summary["after"].keys() == summary["interval"].keys()
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 0


def test_every_set_and_task_stands_on_the_card(life: tuple[Path, list[str]]) -> None:
    folder, _ = life
    card = (folder / "model" / "README.md").read_text()
    for name in ("finnish", "english", "code", "math"):
        assert name in card.lower()
    for task in ("translation", "continuation"):
        assert task in card.lower()


def test_the_cards_snippet_runs_as_printed(life: tuple[Path, list[str]]) -> None:
    folder, _ = life
    snippet = re.search(r"```python\n(.*?)```", (folder / "model" / "README.md").read_text(), re.DOTALL)
    assert snippet is not None
    done = subprocess.run([sys.executable, "-c", snippet[1]], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_a_second_build_makes_nothing(life: tuple[Path, list[str]]) -> None:
    _, words = life
    done = ahkio("build", "--json", *words)
    assert done.returncode == 0
    assert all(stage["existed"] for stage in json.loads(done.stdout).values())


def test_peek_show_and_generate_read_the_same_run(life: tuple[Path, list[str]]) -> None:
    folder, words = life
    rows = json.loads(ahkio("peek", *words, "--step", "1", "--json").stdout)
    assert {row["row"] for row in rows} == {1}
    assert rows[0]["text"]
    shown = json.loads(ahkio("show", str(folder / "model"), "--json").stdout)
    assert "train" in json.dumps(shown).lower()
    made = json.loads(ahkio("generate", str(folder / "model"), "--prompt", "Poro", "--max-new", "4", "--json").stdout)
    assert made["prompt"] == "Poro"


def test_the_record_goes_from_the_summary_to_the_text(life: tuple[Path, list[str]]) -> None:
    folder, words = life
    store = folder.parent / "artifacts"
    manifest = json.loads((folder / "train" / "manifest.json").read_text())
    kinds = {name.split("-")[0] for name in manifest["inputs"]}
    assert kinds == {"import", "tokens"}
    planned = json.loads(ahkio("plan", "--json", *words).stdout)["sources"]
    for name, source in manifest["facts"]["ledger"].items():
        assert source["rows"] == planned[name]["rows"]
    assert all((store / name / "manifest.json").is_file() for name in manifest["inputs"])
