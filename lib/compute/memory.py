"""How much memory a device has left, how much was taken, and keeping what is freed."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

if sys.platform != "win32":
    import resource

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD
ROOM = 0.5  # of a device's free memory that images may take; training needs the rest
NO_LIMIT = 2**62  # bytes: room for images that are there already, or where nobody tells


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Within, the C library keeps what is freed for what is allocated next.

    At the end the system gets it back.

    A step on a CPU takes and frees the same gigabytes as the one before. glibc would return every
    large piece to the system, which hands out zeroed pages anew, a fault for each: a fifth of a
    step and more. GPUs have an allocator of PyTorch's own, and other C libraries are left alone.

    After an allocation that failed, glibc serves the thread from elsewhere, where this has no
    effect: steps are as fast then as without.
    """
    libc = None
    if device.type == "cpu" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
    if libc is None or not hasattr(libc, "mallopt"):
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


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has taken at most; None on systems that don't tell.

    On a GPU what PyTorch allocated there, else resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":  # macOS counts bytes, Linux kilobytes
        return peak
    return 1024 * peak


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take; None on systems that don't tell.

    On a GPU of its memory, else of the system's.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform != "linux":
        return None

    available = _available_memory()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if available is None or limit == resource.RLIM_INFINITY:
        return available

    pages, *_ = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    left = limit - int(pages) * resource.getpagesize()
    return min(available, max(0, left))


def _available_memory() -> int | None:
    """Bytes that Linux can still give to processes; None where it does not say."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable"):
            _, kilobytes, _ = line.split()
            return 1024 * int(kilobytes)
    return None


def room_for(images: Tensor, device: torch.device) -> int:
    """Bytes that images may take on a device.

    No limit where they are there already, or nobody tells.
    """
    free = None
    if images.device.type != device.type:
        free = free_memory(device)
    if free is None:
        return NO_LIMIT
    return int(ROOM * free)
