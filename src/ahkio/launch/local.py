"""The processes of a mesh on this machine: torchrun's elastic agent starts them, and again after one has failed.

Its workers are `ahkio build` again, for one stage. They speak through the first of them, end with the process that
started them, and leave it to that to say why they can't go on.
"""

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

from ahkio.core.errors import Lost, UserError
from ahkio.core.stop import REQUEUE, SOON, Paused, handling

REFUSAL = "AHKIO_REFUSAL"  # names the file in which a worker says why it could not go on
LAUNCHER = "AHKIO_LAUNCHER"  # the process that started this one
SAVING = 300  # seconds that workers may take to save after a signal
GRACE = 20  # seconds that a worker goes on after another has said why it can't
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def run(arguments: Sequence[str], processes: int, restarts: int) -> None:
    """Run `ahkio ARGUMENTS` in so many processes that know each other.

    After a failure all are started again, at most `restarts` times. What the user can mend is no failure: the processes
    end, and it is raised here, as is what they were asked to stop by.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what there is to say is said here
    named = {field.name for field in dataclasses.fields(LaunchConfig)}
    patience: dict[str, Any] = {"shutdown_timeout": SAVING} if "shutdown_timeout" in named else {}  # not in torch 2.11
    with tempfile.TemporaryDirectory(prefix="ahkio-") as folder:
        refusal = Path(folder) / "refusal.json"
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"ahkio-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=restarts,
            monitor_interval=0.2,
            signals_to_handle="SIGHUP",
            **patience,
        )
        try:
            with _environment(refusal, processes), _passing_on(SignalException):
                elastic_launch(config, sys.executable)("-m", "ahkio", *arguments)
        except SignalException as signalled:
            raise (KeyboardInterrupt if signalled.sigval == signal.SIGINT else Paused) from None
        except ChildFailedError as error:
            if not refusal.is_file():
                rank, failure = error.get_first_failure()
                end = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"status {failure.exitcode}"
                raise Lost(
                    f"Process {rank} of {processes} ended with {end}, after {restarts} restarts; what was saved is "
                    "kept, and the same command goes on."
                ) from None
        if refusal.is_file():
            said = json.loads(refusal.read_text())
            raise {130: KeyboardInterrupt, REQUEUE: Paused}.get(said["status"], UserError)(said["sentence"])


@contextlib.contextmanager
def _environment(refusal: Path, processes: int) -> Iterator[None]:
    """What the workers are told by their environment."""
    before = dict(os.environ)
    os.environ |= {REFUSAL: str(refusal), LAUNCHER: str(os.getpid())}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo's and the store's warnings when a process has gone
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


@contextlib.contextmanager
def _passing_on(error: type[Exception]) -> Iterator[None]:
    """Let a signal be raised as the agent's `error`, by which it passes the signal on and waits for the workers to end.

    The same wish sent twice is one; a later one ends the waiting.
    """
    since = -SOON

    def raise_it(number: int, _: FrameType | None) -> None:
        nonlocal since
        if monotonic() - since > SOON:
            since = monotonic()
            raise error(f"signal {number}", signal.Signals(number))

    with handling(raise_it, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# In the workers


def follow_launcher() -> None:
    """In a process that `run` started, see to it that it does not outlive that one, which may be killed, nor for long
    another that has said why they can't go on.

    Only Linux has the first. Without it a worker notices when it next talks to the others, of which one misses it.
    """
    launcher = os.environ.get(LAUNCHER)
    if not launcher:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != int(launcher):
            sys.exit(1)
    refusal = Path(os.environ[REFUSAL])
    with contextlib.suppress(FileNotFoundError):
        if json.loads(refusal.read_text())["attempt"] != _attempt():  # one that failed in the end
            refusal.unlink()
    threading.Thread(target=_end_after, args=(refusal,), daemon=True).start()


def _end_after(refusal: Path) -> None:
    while not refusal.is_file():
        sleep(0.5)
    sleep(GRACE)
    os._exit(0)


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "")


def refused(sentence: str, status: int) -> bool:
    """In a process that `run` started, leave word of why it ends; whether this is one. The first word is kept."""
    path = os.environ.get(REFUSAL)
    if path:
        draft = Path(f"{path}.{os.getpid()}")
        draft.write_text(json.dumps({"sentence": sentence, "status": status, "attempt": _attempt()}))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    return bool(path)


def has_refused() -> bool:
    """Whether another of the processes that `run` started has said why they can't go on."""
    return Path(os.environ.get(REFUSAL, "/nowhere")).is_file()
