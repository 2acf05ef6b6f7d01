"""What this machine is and how hard it works: environment, memory, peak arithmetic rate."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

PACKAGES = ("ahkio", "torch", "transformers", "tokenizers", "fastokens", "safetensors", "lm_eval", "sacrebleu")

GPU_NODES = ("nvidia[0-9]*", "kfd", "dxg")  # in /dev: NVIDIA's, AMD's, and either in Windows' Linux

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h

# Dense bf16 peak of one device in FLOP/s, from the makers' data sheets (without sparsity).
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "MI250X GCD": 191.5e12,
    "MI300X": 1307.4e12,
}


def environment() -> dict[str, Any]:
    """Where and with what something was made, for a manifest. Holds no host name, user or path."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
    }


@lru_cache
def package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@lru_cache
def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@lru_cache
def cpu_flags() -> frozenset[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions that multiply bf16 matrices; without them bf16 is far slower than fp32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def kind() -> str:
    """The kind of device that torch would compute on here: "cuda" (also ROCm's name) or "cpu".

    Where no driver of a GPU shows in /dev, torch is not asked: its import takes a second.
    """
    if "torch" not in sys.modules and not any(any(Path("/dev").glob(node)) for node in GPU_NODES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that gives this process's peak resident memory in bytes since the start of the block.

    Linux can forget the earlier peak; elsewhere the peak is the whole process's.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield _peak_bytes


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Let freed memory stay with the process for its next use, on Linux with glibc; elsewhere do nothing.

    Big tensors would otherwise be given back to the system at once, and each new one be filled with zeros page by page:
    8% of a training step on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def peak_flops(dtype: str = "float32", device: str = "cpu") -> tuple[float, str]:
    """FLOP/s that this machine can reach in matrix products of `dtype`, and how that was found.

    A GPU's is its maker's figure when we know it; a CPU's is measured in half a second, in fp32 by NumPy where torch is
    not loaded. Of several measurements in this process it is the best, since a machine with other work looks slow.
    """
    n = 1024 if device == "cpu" else 4096
    how = f"best {n}x{n} {dtype} matrix product measured here"
    if (device, dtype) == ("cpu", "float32") and "torch" not in sys.modules:
        import numpy as np

        x = np.ones((n, n), np.float32)
        return _best_rate((device, dtype), lambda: x @ x, 2 * n**3), how
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
        for key, rate in PEAK_FLOPS.items():
            if key.split()[0] in name:
                return rate, f"{key}, maker's dense bf16 figure"
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    return _best_rate((device, dtype), lambda: (a @ a)[0, 0].item(), 2 * n**3), how


_best: dict[tuple[str, str], float] = {}


def _best_rate(key: tuple[str, str], work: Callable[[], object], flops: float) -> float:
    rates = [_best.get(key, 0.0)]
    end = perf_counter() + 0.5
    while perf_counter() < end or len(rates) == 1:
        began = perf_counter()
        work()
        rates.append(flops / (perf_counter() - began))
    _best[key] = max(rates)
    return _best[key]
