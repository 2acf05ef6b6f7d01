"""datatrove's pipelines on the cores of this machine."""

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from ahkio.core.workers import in_order


class Local(LocalPipelineExecutor):
    """datatrove's local executor in our processes: its tasks, completion markers and logs, under the folder `logs`.

    What it has to say stands in the logs only. Its own pool waits forever for a task whose process was killed, and
    its processes outlive this one; ours do neither.
    """

    def __init__(self, pipeline: list[PipelineStep], tasks: int, workers: int, logs: Path) -> None:
        super().__init__(pipeline, tasks, workers, str(logs))

    def run(self) -> None:
        """Run the tasks that are not marked as completed. What a task raises is raised here."""
        for _ in in_order(self._run_for_rank, self.get_incomplete_ranks(), self.workers, load=bool):
            pass

    def _run_for_rank(self, rank: int, *rest: Any) -> PipelineStats:
        with contextlib.redirect_stderr(io.StringIO()):
            return super(Local, copy.deepcopy(self))._run_for_rank(rank, *rest)
