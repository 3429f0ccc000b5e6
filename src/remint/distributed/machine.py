"""What this machine can do, what it is, and how torch is held to the same answer every time.

Weights are equal to the bit only between runs of one fingerprint: processor, instruction set, threads, world
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

# Variables that choose other kernels and so other last bits.
KERNEL_VARIABLES = ("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")


def devices() -> int:
    """How many processes this machine can run side by side: one a GPU, without one: one a CPU core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity
    return torch.cuda.device_count() or cores


def check_devices(pipeline: str, asked: int) -> None:
    """Raises ResourceError where this machine has fewer devices than ``asked`` processes."""
    have = devices()
    if asked > have:
        gpus, cores = torch.cuda.device_count(), have
        machine = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cores} CPU core{'s' * (cores > 1)} and no GPU"
        raise ResourceError(
            f"params.yaml: pipelines.{pipeline}.training.devices: {asked} asked, this machine has {machine}: "
            f"set devices to at most {have}, or train where there are more"
        )


def fingerprint(device: torch.device, threads: int, world_size: int) -> dict[str, Any]:
    """The hardware, threads and build within which hashes of weights may be compared. Torch has a build for each interpreter."""
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
    """Deterministic kernels on ``threads`` CPU threads while the block runs."""
    torch_wide: Any = torch.utils.deterministic  # a module with a property, which its stubs do not say
    threads_before, fill_before = torch.get_num_threads(), torch_wide.fill_uninitialized_memory
    mode_before = torch.get_deterministic_debug_mode()
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it only
    torch.set_num_threads(threads)
    # CUDA has no deterministic form of some operations (a cumulative sum): there a warning, or nothing would train.
    # Not use_deterministic_algorithms: it imports torch's compiler, which nothing here uses and which takes a second.
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    torch_wide.fill_uninitialized_memory = False  # finds bugs in kernels, at the price of time
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_deterministic_debug_mode(mode_before)
        torch_wide.fill_uninitialized_memory = fill_before
