"""The machine: which device and precision to compute with, how fast it multiplies, how much memory
a run took."""

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import InputError

SIDE = {"cuda": 8192}  # of the square matrices by whose product a device's rate is measured
SIDE_ELSEWHERE = 2048
MEASURED_SECONDS = 5  # are enough to measure that rate
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name ("cuda", "mps", "cpu"), or the best there is. Raises InputError where
    it is missing.

    On a GPU float32 is float32 from then on: PyTorch's default rounds the factors of convolutions
    to ten bits (TF32).
    """
    if name is None:
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device '{name}' can't be used here ({str(error).splitlines()[0]})"
        ) from error
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; for "auto" bfloat16 on GPUs that multiply it, float16 on older
    ones, else float32.

    Of CPUs those with AMX multiply bfloat16 several times faster; others compute in float32 unless
    asked otherwise.
    """
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bfloat16" if "amx_bf16" in cpu_flags() else "float32"
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


@cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names ("avx512f", "amx_bf16"); empty on other
    systems."""
    return frozenset(processor("flags").split())


def processor(field: str) -> str:
    """What Linux says of the first processor, as its "model name"; "" on other systems, or where it
    does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout that makes convolutions fast; on Apple's MPS channels_last has given wrong
    BatchNorm gradients."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor from the CPU's memory, on the device; a GPU goes on with what it is doing
    meanwhile."""
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


@contextmanager
def lent(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Within, the model is on the device; afterwards, whatever happened, on the CPU."""
    try:
        yield model.to(device)
    finally:
        model.cpu()


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Within, the C library keeps what is freed for what is allocated next; at the end the system
    gets it back.

    A step on a CPU takes and frees the same gigabytes as the one before. glibc would return every
    large piece to the system, which hands out zeroed pages anew, a fault for each: a fifth of a
    step and more. GPUs have an allocator of PyTorch's own, and other C libraries are left alone.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_MAX, 0)  # large pieces from the heap too
    libc.mallopt(TRIM_THRESHOLD, -1)  # which never shrinks
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, 65_536)  # glibc's defaults
        libc.mallopt(TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


@cache
def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second in the product of two large square matrices: what this
    device can do at best.

    The best of five, after one that does not count; of fewer where they take long, as float16 does
    on most CPUs.
    """
    side = SIDE.get(device.type, SIDE_ELSEWHERE)
    a = torch.randn(side, side, device=device).to(getattr(torch, precision))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > MEASURED_SECONDS:
            break
    return 2 * side**3 / min(seconds[1:] or seconds)


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has taken at most: on a GPU what PyTorch allocated there, else
    resident memory.

    None on systems that don't tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name != "posix":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux kilobytes


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take, of the GPU's or the system's memory; None on systems
    that don't tell."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform != "linux":
        return None
    import resource

    lines = Path("/proc/meminfo").read_text().splitlines()
    left = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    limit, pages = (
        resource.getrlimit(resource.RLIMIT_AS)[0],
        int(Path("/proc/self/statm").read_text().split()[0]),
    )
    return (
        left
        if limit == resource.RLIM_INFINITY
        else min(left, max(0, limit - pages * resource.getpagesize()))
    )
