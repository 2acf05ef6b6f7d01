"""Where datatrove's tasks run: in processes here, as jobs of Slurm, or on a Ray cluster. No result depends on it.

`run` does every task that its `logs` do not say is done, and comes back when all are; UserError where some are not.
"""

import contextlib
import io
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from ahkio.core.errors import UserError
from ahkio.core.machine import cores

Pipeline = Sequence[Any]  # of datatrove's steps


@dataclass(frozen=True)
class Local:
    """Processes of this machine; 0: one per core."""

    workers: int = 0

    def build(self, pipeline: Pipeline, tasks: int, logs: Path) -> Any:
        from ahkio.text import trove

        return trove.Local(list(pipeline), tasks, self.workers or cores(), logs)

    def run(self, pipeline: Pipeline, tasks: int, logs: Path) -> None:
        self.build(pipeline, tasks, logs).run()


@dataclass(frozen=True)
class Slurm:
    """An array job for each step. To be built where jobs can be submitted from; the folder of runs must be shared.

    `time` as sbatch takes it; `workers`: tasks at a time, -1 all; `tasks_per_job`: one after the other in one job.
    `env_command`: what gets a job's environment ready. `sbatch_args`: further options, as pairs.
    """

    partition: str
    time: str = "10:00:00"
    workers: int = -1
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    tasks_per_job: int = 1
    max_array_size: int = 1001
    qos: str = ""
    env_command: str = ""
    sbatch_args: tuple[tuple[str, str], ...] = ()
    seconds_between_looks: float = 30.0

    def build(self, pipeline: Pipeline, tasks: int, logs: Path) -> Any:
        from datatrove.executor import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            list(pipeline),
            tasks,
            self.time,
            self.partition,
            cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb,
            workers=self.workers,
            job_name=f"ahkio-{logs.name}",
            qos=self.qos,
            env_command=self.env_command,
            sbatch_args=dict(self.sbatch_args),
            max_array_size=self.max_array_size,
            logging_dir=str(logs.resolve()),
            tasks_per_job=self.tasks_per_job,
        )

    def run(self, pipeline: Pipeline, tasks: int, logs: Path) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("There is no sbatch here; build where Slurm takes jobs, or with executor Local().")
        executor = self.build(pipeline, tasks, logs)
        if not executor.get_incomplete_ranks():
            return
        with silenced():
            executor.run()
        while _is_queued(executor.job_id):
            sleep(self.seconds_between_looks)
        _refuse_unfinished(executor, logs)


@dataclass(frozen=True)
class Ray:
    """Tasks of the Ray cluster that this process can reach; the folder of runs must be shared.

    `workers`: tasks at a time, -1 all.
    """

    workers: int = -1
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 4
    tasks_per_job: int = 1

    def build(self, pipeline: Pipeline, tasks: int, logs: Path) -> Any:
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(
            list(pipeline),
            tasks,
            self.workers,
            logging_dir=str(logs.resolve()),
            cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb,
            tasks_per_job=self.tasks_per_job,
        )

    def run(self, pipeline: Pipeline, tasks: int, logs: Path) -> None:
        with silenced():
            executor = self.build(pipeline, tasks, logs)
            try:
                executor.run()
            except ImportError as error:
                raise UserError("The executor Ray needs the package ray; run: pip install ray") from error
        _refuse_unfinished(executor, logs)


Executor = Local | Slurm | Ray


def _is_queued(job: str) -> bool:
    """Whether Slurm still has something to do for `job`. Its queue forgets jobs that have ended."""
    asked = subprocess.run(["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True)
    if asked.returncode:
        return "Invalid job id" not in asked.stderr  # else Slurm did not answer, which says nothing about the job
    return bool(asked.stdout.strip())


def _refuse_unfinished(executor: Any, logs: Path) -> None:
    if left := executor.get_incomplete_ranks():
        raise UserError(
            f"{len(left)} of {executor.world_size} tasks of {logs.name} are not done; read why in {logs}, and the same "
            "command goes on with them."
        )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what datatrove says off the terminal; it writes the log of each task beside."""
    from loguru import logger

    with contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            logger.remove()  # a sink that writes to what stderr is here
