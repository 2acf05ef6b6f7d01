"""The Train stage: a recipe's training as a value, and what `plan` says of it before it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ahkio.core import machine
from ahkio.core.config import how
from ahkio.core.errors import UserError
from ahkio.core.mesh import Mesh
from ahkio.core.stage import Facts, Inputs, Known, Stage
from ahkio.model.shape import LlamaConfig, Recompute, RopeScaling
from ahkio.tokens.batches import Rows, plan_of
from ahkio.tokens.heldout import HeldOut
from ahkio.tokens.mixture import Mix, Plan
from ahkio.train.objectives import NextToken
from ahkio.train.optimizer import AdamW, Cosine
from ahkio.train.spikes import Spikes

USUAL_UTILISATION = {"cpu": 0.6, "gpu": 0.4}  # of the peak; what well-kept systems reach; plan's times rest on it


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Continued pretraining of `start` on `mix`, with `steps` optimizer steps of `rows`.

    model/               the weights in fp32 as a Hugging Face folder without tokenizer
    checkpoints/step-N/  the last checkpoint, with the optimizer's state and the ledger
    metrics.jsonl, tensorboard/
    """

    RESUMES = True

    start: Stage  # its artifact is a Hugging Face folder
    mix: Mix
    steps: int
    rows: Rows = Rows()
    objective: NextToken = NextToken()
    optimizer: AdamW = AdamW()
    schedule: Cosine = Cosine()
    spikes: Spikes = Spikes()
    precision: Literal["fp32", "bf16"] = "bf16"  # of activations and products; weights and optimizer stay fp32
    heldout: tuple[HeldOut, ...] = ()  # bits per byte on these in the loop
    heldout_documents: int = 0  # the first so many of each; 0: all
    heldout_context: int = 1024  # tokens
    measure_every: int = how(0)  # steps; 0: before the first step and after the last only
    save_every: int = how(100)  # steps between checkpoints
    keep: int = how(1)  # of the newest checkpoints
    keep_every: int = how(0)  # steps; checkpoints of multiples of it are kept as well
    micro_batch: int = how(0)  # rows in one forward and backward; 0: all of a rank's part of a step
    recompute: Recompute = how("none")  # activation checkpointing: less memory, up to a third more work
    compile: bool = how(False)  # torch.compile of each block; needs a C++ compiler on a CPU
    offload: bool = how(False)  # weights, gradients and optimizer state wait in the CPU's memory; on a mesh
    mesh: Mesh = how(Mesh())
    parts_per_rank: int = how(1)  # of the layers along mesh.pipe; several interleave (a smaller bubble, more messages)
    patience: int = how(600)  # seconds that a process waits for the others before it gives up
    time_limit: float = how(0.0)  # minutes, after which the run saves and ends to be started again; 0: none
    restarts: int = how(3)  # after failures of processes that `ahkio build` started itself
    device: str = how("auto")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; a run has at least 1.")
        if self.mesh.pipe > 1 and self.heldout and self.heldout_context > self.rows.length:
            raise UserError(
                f"heldout_context is {self.heldout_context}, but on a pipe texts go through in rows of training, which "
                f"have {self.rows.length} tokens; make it that, or less."
            )
        if self.mix.rows and self.mix.rows < self.total_rows:
            raise UserError(
                f"The mix has {self.mix.rows:,} rows, but {self.steps:,} steps of {self.rows.per_step} rows need "
                f"{self.total_rows:,}; append a segment to the mix, or give its last one rows=0 (to the end)."
            )

    @property
    def total_rows(self) -> int:
        return self.steps * self.rows.per_step

    @property
    def processes(self) -> int:
        return self.mesh.devices

    @property
    def micro_rows(self) -> int:
        """Rows in one forward and backward of a rank."""
        return self.micro_batch or -(-self.rows.per_step // self.mesh.data_ranks)

    @property
    def tokens(self) -> int:
        return self.total_rows * self.rows.length

    def run(self, out: Path, inputs: Inputs) -> Facts:
        from ahkio.train.loop import train

        return train(self, out, inputs)

    def progress(self, draft: Path) -> str:
        steps = [
            int(path.name[5:]) for path in draft.glob("checkpoints/step-*[0-9]") if (path / "state.json").is_file()
        ]
        return f"{max(steps):,} of {self.steps:,} steps" if steps else ""

    def forecast(self, known: Known) -> Facts:
        """Steps, tokens and epochs by source, parameters, and estimates of memory per device and of time."""
        facts: Facts = {"steps": self.steps, "tokens": self.tokens, "sources": {}, "warnings": []}
        plan = self._plan(known)
        facts["sources"] = self._sources(plan, known)
        if uncounted := [name for name, stage in self.mix.sources.items() if "tokens" not in known(stage)]:
            facts["warnings"].append(
                f"Tokens of {', '.join(uncounted)} are not counted yet; build them to know epochs."
            )
        else:
            facts |= refusal_of(plan, self.total_rows)
        start = known(self.start)
        if "config" in start:
            shape = shape_of(start["config"])
            facts |= {"parameters": shape.parameters, "memory_bytes": self.memory_bytes(shape)}
            facts |= self._time(shape)
        if self.precision == "bf16" and not self.mesh.device and machine.kind() == "cpu" and not machine.cpu_has_bf16():
            facts["warnings"].append("This machine multiplies bf16 slowly; train.precision=fp32 is faster here.")
        return facts

    def _plan(self, known: Known) -> Plan:
        counted = {name: known(stage).get("tokens", 0) for name, stage in self.mix.sources.items()}
        return plan_of(self.mix, counted, self.rows)

    def _sources(self, plan: Plan, known: Known) -> dict[str, Facts]:
        weights = {share.name: share.weight for segment in self.mix.segments for share in segment.shares}
        counts = plan.counts(self.total_rows)
        return {
            name: {
                "weight": weights[name],
                "rows": counts[name],
                "tokens": counts[name] * self.rows.length,
                "epochs": round(counts[name] / plan.available[name], 4) if plan.available[name] else None,
                "available_tokens": known(stage).get("tokens"),
            }
            for name, stage in self.mix.sources.items()
        }

    def memory_bytes(self, shape: LlamaConfig) -> int:
        """An estimate of one device's peak: weights, gradients and two moments in fp32, activations, a loss chunk."""
        states = 16 * shape.parameters / self.mesh.model_parts
        rows = self.micro_rows
        per_token = 8 * shape.width + 4 * shape.ffn + 4 * (shape.heads + shape.kv_heads) * shape.head_width
        layers = 1 + shape.layers / 8 if self.recompute != "none" else shape.layers / self.mesh.pipe
        activations = (2 if self.precision == "bf16" else 4) * per_token * layers * rows * self.rows.length
        return int(states + activations / (self.mesh.tensor * self.mesh.context) + 3 * (64 << 20))

    def _time(self, shape: LlamaConfig) -> Facts:
        name = self.mesh.device
        if name and name not in machine.PEAK_FLOPS:
            return {"warnings": [f"mesh.device={name!r} is not in the table: {', '.join(machine.PEAK_FLOPS)}."]}
        dtype = "bfloat16" if self.precision == "bf16" else "float32"
        peak = machine.PEAK_FLOPS[name] if name else machine.peak_flops(dtype, machine.kind())[0]
        work = self.tokens * shape.flops_per_token(self.rows.length)
        usual = USUAL_UTILISATION["gpu" if name or machine.kind() == "cuda" else "cpu"]
        return {"seconds": round(work / (peak * self.mesh.devices * usual))}


def refusal_of(plan: Plan, rows: int) -> Facts:
    try:
        plan.check(rows)
    except UserError as error:
        return {"refusal": str(error)}
    return {}


def shape_of(facts: Facts) -> LlamaConfig:
    """The shape that `config.plain` wrote into a manifest."""
    given = {key: value for key, value in facts.items() if key != "is"}
    if given.get("rope_scaling"):
        given["rope_scaling"] = RopeScaling(**{k: v for k, v in given["rope_scaling"].items() if k != "is"})
    return LlamaConfig(**given)
