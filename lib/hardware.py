"""The machine: its devices and their precision, how fast it multiplies, how much memory it has."""

import ctypes
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lib import InputError

if sys.platform != "win32":
    import resource

SIDE = {"cuda": 8192}  # of the square matrices by whose product a device's rate is measured
SIDE_ELSEWHERE = 2048
MEASURED_SECONDS = 5  # are enough to measure that rate
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD
ROOM = 0.5  # of a device's free memory that images may take; training needs the rest
NO_LIMIT = 2**62  # bytes: room for images that are there already, or where nobody tells

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name ("cuda", "mps", "cpu"), or the best there is.

    On a GPU float32 is float32 from then on: PyTorch's default rounds the factors of convolutions
    to ten bits (TF32). Raises InputError where the device is missing.
    """
    if name is None:
        name = _best_device()
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


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; for "auto" the one that suits the device.

    That is bfloat16 on GPUs that multiply it, float16 on older ones, else float32. Of CPUs those
    with AMX multiply bfloat16 several times faster; others compute in float32 unless asked
    otherwise.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return fast_on_gpu(torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        return fast_on_cpu(cpu_flags())
    return "float32"


def fast_on_gpu(capability: tuple[int, int]) -> str:
    """The precision that a GPU of that compute capability multiplies fast."""
    if capability >= (8, 0):
        return "bfloat16"
    return "float16"


def fast_on_cpu(flags: frozenset[str]) -> str:
    """The precision that a CPU with those flags multiplies fast."""
    if "amx_bf16" in flags:
        return "bfloat16"
    return "float32"


@cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names ("avx512f"); empty on other systems."""
    return frozenset(processor("flags").split())


def processor(field: str) -> str:
    """What Linux says of the first processor, as its "model name"; "" where it does not say."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():  # another system
        return ""
    for line in info.read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout that makes convolutions fast: channels last.

    On Apple's MPS it has given wrong gradients of BatchNorm.
    """
    if device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor from the CPU's memory, on the device; a GPU goes on with its work meanwhile."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def compiles(device: torch.device) -> bool:
    """Whether torch.compile makes fast code for a device.

    It does for GPUs of compute capability 7.0 or newer, where Triton is installed. Not in PyTorch's
    deterministic mode: the compiler tries several ways to add numbers up, and keeps the fastest.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    if torch.are_deterministic_algorithms_enabled():
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def read_ahead(read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """read(item) of each item, in order, by a thread that is one item ahead."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(reader.submit(read, item))
            if len(waiting) == 2:
                yield waiting.popleft().result()

        while waiting:
            yield waiting.popleft().result()


@contextmanager
def lent(model: M, device: torch.device) -> Iterator[M]:
    """Within, the model is on the device; afterwards, whatever happened, on the CPU."""
    try:
        yield model.to(device)
    finally:
        model.cpu()


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Within, the C library keeps what is freed for what is allocated next.

    At the end the system gets it back.

    A step on a CPU takes and frees the same gigabytes as the one before. glibc would return every
    large piece to the system, which hands out zeroed pages anew, a fault for each: a fifth of a
    step and more. GPUs have an allocator of PyTorch's own, and other C libraries are left alone.
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


@cache
def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second in the product of two large square matrices.

    It is what this device can do at best: the best of five, after one that does not count; of fewer
    where they take long, as float16 does on most CPUs.
    """
    side = SIDE.get(device.type, SIDE_ELSEWHERE)
    a = torch.randn(side, side, device=device).to(getattr(torch, precision))

    seconds: list[float] = []
    for _ in range(6):
        started = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > MEASURED_SECONDS:
            break

    counted = seconds[1:] or seconds
    return 2 * side**3 / min(counted)


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
