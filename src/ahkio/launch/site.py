"""A cluster as a value: what jobs ask for there, and what their scripts set up. The known ones stand in sites/."""

import re
from dataclasses import dataclass

from ahkio.core.errors import UserError

TIMES = {  # sbatch's ways to write a time, with the seconds of each of their numbers
    r"(\d+)": (60,),
    r"(\d+):(\d+)": (60, 1),
    r"(\d+):(\d+):(\d+)": (3600, 60, 1),
    r"(\d+)-(\d+)": (86400, 3600),
    r"(\d+)-(\d+):(\d+)": (86400, 3600, 60),
    r"(\d+)-(\d+):(\d+):(\d+)": (86400, 3600, 60, 1),
}


def seconds_of(time: str) -> int:
    """Seconds of a time as sbatch takes it; 0 for what is none."""
    for pattern, units in TIMES.items():
        if found := re.fullmatch(pattern, time):
            return sum(int(number) * unit for number, unit in zip(found.groups(), units, strict=True))
    return 0


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What jobs of one kind ask Slurm for."""

    partition: str = ""  # empty: the cluster's default
    time: str = "24:00:00"
    cpus: int = 0  # cores for each task; 0: the cluster's default
    options: tuple[str, ...] = ()  # more of sbatch's options, such as --mem=224G

    def __post_init__(self) -> None:
        if not seconds_of(self.time):
            raise UserError(f"{self.time!r} is no time to Slurm; write minutes, hours:minutes:seconds or days-hours.")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster: what jobs ask for there, and what their scripts set up. Each file in sites/ holds one, as SITE.

    What is set up is shell text in double quotes or lines of it, so it may use variables, such as $SLURM_JOB_ID.
    """

    devices: int  # of a node; as many processes of a mesh run on one
    mesh: Ask = Ask()  # stages of several processes
    device: Ask = Ask()  # stages of one process that computes on a GPU
    cpu: Ask = Ask()  # all others
    account: str = ""
    sbatch: tuple[str, ...] = ()  # more options for all jobs, such as --qos=debug
    masks: tuple[str, ...] = ()  # the cores of each process of a mesh on a node, as srun's mask_cpu takes them
    setup: tuple[str, ...] = ()  # lines that each script runs first, such as module load
    variables: tuple[tuple[str, str], ...] = ()  # name and value, of jobs with devices
    each: tuple[str, ...] = ()  # lines that each task of a job with devices runs first
    container: str = ""  # the image to run in, if any
    enter: tuple[str, ...] = ("singularity", "exec")  # the words before the image
    python: str = ""  # empty: the python that submits or, in a container, python3
    warning: int = 600  # seconds before the end at which tasks are told to save; a quarter of a short time
    retries: int = 3  # of a job that fails, as long as it does so without saving between

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UserError(f"devices is {self.devices}; a node of a site has at least 1, if only a CPU.")
        if self.warning < 1 or self.retries < 0:
            raise UserError(f"warning is {self.warning} and retries {self.retries}; at least 1 and 0 are needed.")
