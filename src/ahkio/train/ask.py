"""Tasks of lm-eval put to the model while it learns: on the run's own mesh, without export."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ahkio.core.errors import UserError
from ahkio.core.stage import Facts, Inputs
from ahkio.evaluate.harness import load_asked, put_tasks
from ahkio.evaluate.lm import AhkioLM, HarnessLM
from ahkio.model.generate import goes_on
from ahkio.model.llama import Llama
from ahkio.tokens.batches import Batch, Rows, cut
from ahkio.tokens.heldout import Window, batches_of
from ahkio.tokens.tokenizer import Encoder
from ahkio.train.engine import Engine
from ahkio.train.measure import unit_of

if TYPE_CHECKING:
    from ahkio.train.train import Settled as Train


@contextmanager
def open_tasks(run: "Train", inputs: Inputs, engine: Engine) -> Iterator[Callable[[], dict[str, Facts]]]:
    """Load the run's tasks; yield what puts them to the model as it then is, and returns the facts of each by name."""
    encoder = Encoder.load(inputs[run.start].path)
    lm = lm_of(engine, encoder, run.heldout_context, run.rows, run.micro_rows)
    with tempfile.TemporaryDirectory() as cache:
        tasks = {asked.name: load_asked(asked, inputs, Path(cache)) for asked in run.tasks}

        def put() -> dict[str, Facts]:
            with torch.compiler.set_stance("force_eager"):  # as in measure
                found = [put_tasks(lm, {one.name: tasks[one.name]}, one.items)[one.name] for one in run.tasks]
            return {one.name: result.facts for one, result in zip(run.tasks, found, strict=True)}

        yield put


def lm_of(engine: Engine, encoder: Encoder, context: int, rows: Rows, micro_rows: int) -> HarnessLM:
    """The engine's model behind lm-eval, with the tokenizer's BOS before each prompt, if it has one."""
    (model, *_) = engine.models
    if isinstance(model, Llama):
        return AhkioLM(model, encoder, context=context, bos=True, tokens_per_batch=micro_rows * rows.length)
    return MeshLM(engine, encoder, context, rows, micro_rows)


class MeshLM(HarnessLM):
    """A model whose weights lie on many ranks. All of them ask the same, and the data ranks share out the rows.

    There is no cache: each new token is a forward pass over the texts so far.
    """

    def __init__(self, engine: Engine, encoder: Encoder, context: int, rows: Rows, micro_rows: int) -> None:
        super().__init__(encoder, context=context, bos=True)
        self.engine, self.rows, self.micro_rows = engine, rows, micro_rows

    def _score(self, requests: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        windows = [Window([*context, *scored], len(scored), n) for n, (context, scored) in enumerate(requests)]
        return [(nats, not misses) for nats, misses, _ in self._answers(windows)]

    def _go_on(
        self, prompts: list[list[int]], most: int, until: Callable[[list[int]], bool], temperature: float
    ) -> list[list[int]]:
        if temperature > 0:
            raise UserError("A task draws its answers at random; on a mesh, ask only those with do_sample: false.")
        new: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        for _ in range(most):
            windows = [Window([*prompts[row], *new[row], 0], 1, n) for n, row in enumerate(going)]
            chosen = [int(best) for _, _, best in self._answers(windows)]
            pairs = zip(going, chosen, strict=True)
            going = [row for row, token in pairs if goes_on(token, new[row], {self.encoder.eos}, until)]
            if not going:
                break
        return new

    def _answers(self, windows: Sequence[Window]) -> list[list[float]]:
        """Of each window's scored tokens: nats, how many are not the likeliest, and the sum of the likeliest ids."""
        if not windows:
            return []
        rows, micro_rows = self._layout(windows)
        table = sum(self._part(pair, micro_rows, len(windows)) for pair in batches_of(windows, rows))
        assert isinstance(table, Tensor)
        found: list[list[float]] = table.tolist()
        return found

    def _part(self, asked: tuple[Batch, Batch], micro_rows: int, number: int) -> Tensor:
        group = self.engine.group
        batches, owners = (cut(one, micro_rows, group.data_rank, group.mesh.data_ranks) for one in asked)
        return self.engine.answers(batches, owners, number)

    def _layout(self, windows: Sequence[Window]) -> tuple[Rows, int]:
        """Rows for these windows, and how many go through the model at a time: no more tokens than in training. A pipe
        has to have those of training."""
        if self.engine.pipe:
            return self.rows, self.micro_rows
        mesh, longest = self.engine.group.mesh, max(len(window.ids) - 1 for window in windows)
        length = -(-longest // unit_of(mesh)) * unit_of(mesh)
        fitting = max(1, self.micro_rows * self.rows.length // length)
        micro_rows = min(fitting, -(-len(windows) // mesh.data_ranks))
        return replace(self.rows, length=length, per_step=micro_rows * mesh.data_ranks), micro_rows
