"""Devices and fingerprint of this machine, and deterministic kernels in torch.

Weights are equal to the bit only between runs with the same fingerprint: processor, instruction set, threads, world
size, device and torch build all change the order of floating-point sums.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from remint.errors import ResourceError

# Variables that choose other kernels, and so change the last bits.
KERNEL_VARIABLES = ("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")


def devices() -> int:
    """Return the number of processes that this machine can run side by side: one per GPU; without a GPU, one per CPU core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity
    return torch.cuda.device_count() or cores


def check_devices(pipeline: str, requested: int) -> None:
    """Raise ResourceError if this machine has fewer devices than ``requested``."""
    available = devices()
    if requested > available:
        gpus, cores = torch.cuda.device_count(), available
        machine = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cores} CPU core{'s' * (cores > 1)} and no GPU"
        raise ResourceError(
            f"params.yaml: pipelines.{pipeline}.training.devices: {requested} is more than this machine has ({machine}): "
            f"set devices to at most {available}, or train on a larger machine"
        )


def fingerprint(device: torch.device, threads: int, world_size: int) -> dict[str, Any]:
    """Return the hardware, threads and build. Hashes of weights are comparable only if these are equal.

    The interpreter is part of it because torch has one build per interpreter.
    """
    return {
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "world_size": world_size,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "torch": torch.__version__,
        "interpreter": f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}",
        "environment": {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Use deterministic kernels and ``threads`` CPU threads while the block runs."""
    torch_deterministic: Any = torch.utils.deterministic  # a module with a property, which its type stubs lack
    threads_before, fill_before = torch.get_num_threads(), torch_deterministic.fill_uninitialized_memory
    mode_before = torch.get_deterministic_debug_mode()
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.set_num_threads(threads)
    # CUDA has no deterministic form of some operations (a cumulative sum). An error there would stop every training.
    # use_deterministic_algorithms is not used: it imports torch's compiler, which takes a second and is not needed here.
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    torch_deterministic.fill_uninitialized_memory = False  # filling finds bugs in kernels, but takes time
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(mode_before)
        torch_deterministic.fill_uninitialized_memory = fill_before
