"""lm-eval run as a function: offline, quiet, seeded, without bootstrap, on question files of our own."""

import contextlib
import difflib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import yaml
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import hash_string

from ahkio.core.errors import UserError
from ahkio.core.stage import Facts, Inputs
from ahkio.evaluate.asked import Asked
from ahkio.evaluate.evaluate import TASKS, task_file
from ahkio.evaluate.spoken import with_language


@dataclass(frozen=True)
class TaskResult:
    """What lm-eval says of one task, and each item's part of it."""

    facts: Facts
    items: list[Facts]


def run_tasks(
    lm: LM, files: Sequence[Path], questions: Path, *, shots: int, limit: int, seed: int
) -> dict[str, TaskResult]:
    """Put the tasks of YAML `files` to `lm`, with data from the folder `questions`.

    Tasks with a split of examples get `shots` of them; `limit` is the most items of each task, 0 for all.
    """
    with tempfile.TemporaryDirectory() as cache, _offline(), _quiet():
        tasks = {file.stem: load_task(file, questions, Path(cache), shots, seed) for file in files}
        return put_tasks(lm, tasks, limit)


def put_tasks(lm: LM, tasks: dict[str, ConfigurableTask], limit: int) -> dict[str, TaskResult]:
    """Put loaded tasks, which may have been put before, to `lm`."""
    with _offline(), _quiet():
        results = evaluate(lm, {"tasks": tasks}, limit=limit or None, bootstrap_iters=0)
        return {name: _result(name, task, results) for name, task in tasks.items()}


def load_task(file: Path, questions: Path, cache: Path, shots: int, seed: int) -> ConfigurableTask:
    """The task of one YAML file on the question files of a folder; what lm-eval makes of them goes to `cache`."""
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"] = {
        "data_files": {split: str(questions / name) for split, name in names.items()},
        "cache_dir": str(cache),
    }
    config["num_fewshot"] = shots if "fewshot_split" in config else 0
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(seed)
    return task


def load_asked(asked: Asked, inputs: Inputs, cache: Path) -> ConfigurableTask:
    """A task of the loop, ready to be put again and again."""
    if asked.questions is None:
        return load_named(asked.task, built_in=asked.file is None)
    questions = inputs[asked.questions].path
    return load_task(task_file(asked.task), questions, cache, asked.questions.shots, seed=0)


def load_named(name: str, built_in: bool) -> ConfigurableTask:
    """The task that lm-eval itself has, or else that of the YAML file `name`. UserError where it can't be put here."""
    with _offline(), _quiet():
        manager = TaskManager(include_defaults=built_in)
        if built_in and name not in manager.all_subtasks:
            known = [*manager.all_subtasks, *(file.stem for file in TASKS.glob("*.yaml"))]
            near = " or ".join(difflib.get_close_matches(name, known, n=3)) or "one of `lm-eval ls subtasks`"
            raise UserError(f"There is no single task {name!r} here or in lm-eval; did you mean {near}?")
        try:
            (task,) = manager.load(name)["tasks"].values()
        except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
            said = str(error).partition("\n")[0]
            raise UserError(f"Task {name!r} can't be loaded ({said}); see to its data, or leave it out.") from error
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"Task {name!r} runs code that the model writes, which is not done in the loop; leave it out.")
    return task


def _result(name: str, task: ConfigurableTask, results: Any) -> TaskResult:
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    metrics = list(task.aggregation())
    figures = {key.partition(",")[0]: value for key, value in results["results"][name].items()}
    facts = {
        "metrics": {metric: float(figures[metric]) for metric in metrics},
        "items": len(samples),
        "shots": results["n-shot"][name],
        "version": results["versions"][name],
        "hash": hash_string("".join(_hashes(sample) for sample in samples)),
    }
    asked = (task.config.metadata or {}).get("language", "")
    return TaskResult(*with_language(facts, [_item(sample, metrics) for sample in samples], asked))


def _item(sample: Facts, metrics: list[str]) -> Facts:
    """An item by its number and a hash of all that was asked; then its scores, or the text made and the reference."""
    identity = {"item": sample["doc_id"], "hash": hash_string(_hashes(sample))[:16]}
    scores = {metric: sample[metric] for metric in metrics if isinstance(sample[metric], int | float)}
    if scores:
        return identity | scores
    return identity | {"hypothesis": sample["filtered_resps"][0], "reference": str(sample["target"])}


def _hashes(sample: Facts) -> str:
    return str(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"])


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Forbid the hub. Both libraries read their environment when first imported, so it is their settings that count."""
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is printed and logged on the way off the terminal; errors still rise."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "sacrebleu")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
