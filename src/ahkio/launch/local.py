"""The processes of a mesh on this machine: torchrun's elastic agent starts them, and again after one has failed."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ahkio.core.errors import UserError
from ahkio.core.stop import REQUEUE, Paused

REFUSAL = "AHKIO_REFUSAL"  # names the file in which a worker says why it could not go on
THREADS = "OMP_NUM_THREADS"
AGENT = {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}  # seconds


def run(arguments: Sequence[str], processes: int, restarts: int) -> None:
    """Run `ahkio ARGUMENTS` in so many processes that know each other.

    After a failure all are started again, at most `restarts` times. What the user can mend is no failure: the processes
    end, and it is raised here.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="ahkio-") as folder:
        refusal = Path(folder) / "refusal.json"
        threads = os.environ.get(THREADS) or str(max(1, len(os.sched_getaffinity(0)) // processes))
        os.environ |= {REFUSAL: str(refusal), THREADS: threads} | AGENT
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"ahkio-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=restarts,
            monitor_interval=0.2,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "ahkio", *arguments)
        except SignalException as signalled:
            raise (KeyboardInterrupt if signalled.sigval == signal.SIGINT else Paused) from signalled
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise UserError(
                f"Process {rank} of {processes} failed ({failure.message.splitlines()[0]}), after {restarts} restarts; "
                "its own words stand above. What was saved is kept, and the same command goes on."
            ) from error
        finally:
            del os.environ[REFUSAL]
        if refusal.is_file():
            said = json.loads(refusal.read_text())
            raise {130: KeyboardInterrupt, REQUEUE: Paused}.get(said["status"], UserError)(said["sentence"])


def refused(sentence: str, status: int) -> bool:
    """In a process that `run` started, leave word of why it ends; whether this is one."""
    path = os.environ.get(REFUSAL)
    if path:
        draft = Path(f"{path}.{os.getpid()}")
        draft.write_text(json.dumps({"sentence": sentence, "status": status}))
        os.replace(draft, path)
    return bool(path)
