"""The training loop: the one for everything that is learnt."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from ahkio.core import machine, state
from ahkio.core.artifact import sha256
from ahkio.core.errors import UserError
from ahkio.core.log import Log, open_log
from ahkio.core.stage import Facts, Inputs, identity
from ahkio.core.stop import asked_to_stop
from ahkio.model import native
from ahkio.model.hub import load_model, save_model
from ahkio.model.llama import Llama
from ahkio.tokens.batches import Batch, Batches, Ledger, add, audit, open_batches
from ahkio.tokens.heldout import Texts, read_texts
from ahkio.train.measure import measure
from ahkio.train.optimizer import set_step, state_tensors
from ahkio.train.step import train_step

if TYPE_CHECKING:
    from ahkio.train.train import Train

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MFU_FORMULA = "tokens/s x (6 x weights in products + 6 x layers x heads x head width x row length, causal) / peak"


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    step: int = 0  # steps finished
    ledger: Ledger = field(default_factory=dict)
    bits_per_byte: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # set: (steps finished, value)
    losses: tuple[float, float] = (0.0, 0.0)  # of the first and of the last step
    seconds: float = 0.0  # in steps, not in measuring or saving
    restarts: int = 0


def train(run: "Train", out: Path, inputs: Inputs) -> Facts:
    device = machine.kind() if run.device == "auto" else run.device
    batches = open_batches(run.mix, {stage: made.path for stage, made in inputs.items()}, run.rows, run.total_rows)
    sets = {
        held.name: read_texts(inputs[held.tokens].path, inputs[held.tokens].facts, run.heldout_documents)
        for held in run.heldout
    }
    model = load_model(inputs[run.start].path, device=device, compute=DTYPES[run.precision], recompute=run.recompute)
    check_tokens(run, inputs, model.config.vocab)
    optimizer = run.optimizer.build(model)
    progress = resume(run, out, model, optimizer, batches)
    if run.compile:
        for block in model.blocks:
            block.compile()
    with (
        open_log(out, run.steps, "train") as log,
        asked_to_stop() as stop,
        open_saver(out, model, optimizer) as saver,
    ):
        log.truncate_after(progress.step - 1)
        if progress.step == 0:
            note_bits(run, progress, model, sets, log)
        take_steps(run, model, optimizer, batches, progress, sets, log, stop, saver)
    audit(progress.ledger, batches.plan, run.total_rows)
    save_model(model, out_folder(out), torch.float32)
    return facts_of(run, model, progress, device)


def check_tokens(run: "Train", inputs: Inputs, vocab: int) -> None:
    """Refuse tokens that the model to start from would not read as they were meant."""
    start = inputs[run.start].path
    own = sha256(start / "tokenizer.json") if (start / "tokenizer.json").is_file() else None
    for name, stage in run.mix.sources.items():
        facts = inputs[stage].facts
        if facts["vocab"] > vocab:
            raise UserError(f"Source {name!r} has ids up to {facts['vocab'] - 1}, but {start.name} has {vocab} tokens.")
        if own not in (None, facts["tokenizer_sha256"]):
            raise UserError(
                f"Source {name!r} was made with another tokenizer than that of {start.name}; give its Tokens the model "
                "to start from as tokenizer."
            )


def take_steps(
    run: "Train",
    model: Llama,
    optimizer: Optimizer,
    batches: Batches,
    progress: Progress,
    sets: Mapping[str, Texts],
    log: Log,
    stop: Any,
    saver: state.Saver,
) -> None:
    """From where the run is to its end; `progress` is kept up with it."""
    flops = model.config.flops_per_token(run.rows.length)
    peak = peak_of(run, model.embed.weight.device.type)[0]
    for step in range(progress.step, run.steps):
        began = perf_counter()
        micro = list(batches.micro(step, run.micro_batch or run.rows.per_step))
        lr = run.schedule.lr(step, run.steps)
        loss, norm = train_step(model, optimizer, run.objective, micro, lr, run.optimizer.clip)
        seconds = perf_counter() - began
        note_step(progress, step, loss, seconds, micro, batches)
        rate = run.rows.per_step * run.rows.length / seconds
        log.step(step, loss=loss, lr=lr, grad_norm=norm, tokens_per_second=rate, mfu=rate * flops / peak,
                 tokens=(step + 1) * run.rows.per_step * run.rows.length)  # fmt: skip
        if due(step, run.measure_every, run.steps):
            note_bits(run, progress, model, sets, log)
        stopping = stop()
        if due(step, run.save_every, run.steps) or stopping:
            saver.save(progress.step, asdict(progress) | {"run": identity(run)})
        if stopping:
            raise KeyboardInterrupt


def due(step: int, every: int, steps: int) -> bool:
    """Whether something done every so many steps, and after the last, is to be done after `step`."""
    return step + 1 == steps or (every > 0 and (step + 1) % every == 0)


def note_step(progress: Progress, step: int, loss: float, seconds: float, micro: list[Batch], batches: Batches) -> None:
    for batch in micro:
        progress.ledger = add(progress.ledger, batch, batches.plan)
    progress.losses = (progress.losses[0] if step else loss, loss)
    progress.seconds += seconds
    progress.step = step + 1


def note_bits(run: "Train", progress: Progress, model: Llama, sets: Mapping[str, Texts], log: Log) -> None:
    found = measure(model, sets, run.heldout_context)
    for name, value in found.items():
        progress.bits_per_byte.setdefault(name, []).append((progress.step, value))
    if found:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        log.note(f"train: bits per byte after step {progress.step:,}: {figures}")


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def open_saver(out: Path, model: Llama, optimizer: Optimizer) -> state.Saver:
    """What saves the run. Its copy of weights and moments goes on behind the next forward and backward pass."""
    saver = state.Saver(out / "checkpoints", state_tensors(model, optimizer))
    optimizer.register_step_pre_hook(lambda *_: saver.wait_until_copied())
    return saver


def resume(run: "Train", out: Path, model: Llama, optimizer: Optimizer, batches: Batches) -> Progress:
    """Go on from the newest checkpoint in `out`; a new Progress where there is none.

    Refuses a checkpoint of another run, naming the field that differs, and one whose ledger is not the plan's.
    """
    tensors = state_tensors(model, optimizer)
    finished = state.checkpoints(out / "checkpoints")
    if not finished:
        set_step(optimizer, 0)
        return Progress()
    saved = state.read_state(finished[-1])
    refuse_foreign(saved.get("run", {}), identity(run), finished[-1])
    progress = Progress(**{name: saved[name] for name in Progress.__dataclass_fields__})
    audit(progress.ledger, batches.plan, progress.step * run.rows.per_step)
    state.load(finished[-1], tensors)
    set_step(optimizer, progress.step)
    progress.restarts += 1
    return progress


def refuse_foreign(saved: Mapping[str, Any], wanted: Mapping[str, Any], checkpoint: Path) -> None:
    for name in wanted.keys() | saved.keys():
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"The checkpoint {checkpoint} is of another run: its {name} is {saved.get(name)!r}, here it is "
                f"{wanted.get(name)!r}; move the checkpoint away, or go on with the recipe that made it."
            )


def out_folder(out: Path) -> Path:
    folder = out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# The record


def facts_of(run: "Train", model: Llama, progress: Progress, device: str) -> Facts:
    """What the manifest, the card and the report say of the run."""
    rate = run.tokens / progress.seconds
    peak, found = peak_of(run, device)
    return {
        "steps": run.steps,
        "tokens": run.tokens,
        "trained_tokens": sum(int(source["trained_tokens"]) for source in progress.ledger.values()),
        "parameters": model.config.parameters,
        "seconds": round(progress.seconds, 2),
        "tokens_per_second": round(rate, 1),
        "mfu": {
            "value": rate * model.config.flops_per_token(run.rows.length) / peak,
            "formula": MFU_FORMULA,
            "peak": found,
            "peak_flops": peak,
        },
        "precision": run.precision,
        "optimizer": {"name": type(run.optimizer).__name__, **asdict(run.optimizer)},
        "schedule": {"name": type(run.schedule).__name__.lower(), **asdict(run.schedule)},
        "rows_per_step": run.rows.per_step,
        "row_length": run.rows.length,
        "documents": run.rows.documents,
        "ledger": shares_of(progress.ledger),
        "bits_per_byte": progress.bits_per_byte,
        "loss_first": progress.losses[0],
        "loss_last": progress.losses[1],
        "restarts": progress.restarts,
        "hardware": hardware(device),
    }


def peak_of(run: "Train", device: str) -> tuple[float, str]:
    """What the device could do in the run's precision, in FLOP/s, and how that is known."""
    return machine.peak_flops(str(DTYPES[run.precision]).removeprefix("torch."), device.partition(":")[0])


def shares_of(ledger: Ledger) -> dict[str, dict[str, float]]:
    rows = sum(source["rows"] for source in ledger.values())
    return {name: source | {"share": source["rows"] / rows} for name, source in ledger.items()}


def hardware(device: str) -> Facts:
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(), "devices": 1}
    kernels = "torch" if native.library() is None else "native"
    cores, threads = machine.cores(), torch.get_num_threads()
    return {"device": machine.cpu_name(), "cores": cores, "threads": threads, "kernels": kernels}
