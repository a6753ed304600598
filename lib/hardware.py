"""The machine: its devices, in which precision they compute, and how fast they multiply."""

import os
import platform
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

from lib import InputError, counted, unknown
from lib.compute.drivers import unusable_gpu

SIDE = {"cuda": 8192}  # of the square matrices by whose product a device's rate is measured
SIDE_ELSEWHERE = 2048
MEASURED_SECONDS = 5  # are enough to measure that rate
DEVICES = ("cuda", "mps", "cpu")

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name ("cuda", "mps", "cpu"), or the best there is.

    On a GPU float32 is float32 from then on: PyTorch's default rounds the factors of convolutions
    to ten bits (TF32), and some containers' settings those of matrix products. Raises InputError
    where the device is missing.
    """
    if name is None:
        name = _best_device()
    if name.partition(":")[0] not in DEVICES:
        raise InputError(unknown("device", name, DEVICES))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        if name.startswith("cuda"):
            why = unusable_gpu() or why
        raise InputError(f"the device '{name}' can't be used here ({why})") from error

    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def device_name(device: torch.device) -> str:
    """A GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor("model name") or platform.processor() or platform.machine()


def in_words(device: torch.device, precision: str | None = None) -> str:
    """A device for people: "NVIDIA H100 (cuda), bfloat16".

    precision: as ``choose_precision`` takes it; None where nothing is trained.
    """
    kind: str = device.type
    if kind == "cpu":
        kind += f", {counted(torch.get_num_threads(), 'thread')}"
    words = f"{device_name(device)} ({kind})"
    if precision is None:
        return words
    return f"{words}, {choose_precision(precision, device)}"


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


def computes(device: torch.device, precision: str) -> bool:
    """Whether a device can train in that precision, which is not "auto".

    GPUs before compute capability 8.0 have no bfloat16. On Apple's MPS float32 alone is sure.
    """
    if device.type == "cuda" and precision == "bfloat16":
        return fast_on_gpu(torch.cuda.get_device_capability(device)) == "bfloat16"
    return precision == "float32" or device.type in ("cuda", "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within, matrices are multiplied in a precision, not "auto"; float32 leaves all as it is."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


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


def copied_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in the CPU's memory, by name.

    A GPU copies them into pinned memory, one after the other, and is waited for once.
    """
    copies = {}
    for name, tensor in tensors.items():
        on_gpu = tensor.device.type == "cuda"
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
        copies[name] = copy.copy_(tensor.detach(), non_blocking=on_gpu)
    for device in {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}:
        torch.cuda.synchronize(device)
    return copies


def compiles(device: torch.device) -> bool:
    """Whether torch.compile makes fast code for a device.

    It does for GPUs of compute capability 7.0 or newer, where Triton is installed, unless PyTorch's
    own TORCH_COMPILE_DISABLE=1 stands in the environment. Not in PyTorch's deterministic mode: the
    compiler tries several ways to add numbers up, and keeps the fastest.
    """
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return False
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
def fastest_convolutions(device: torch.device) -> Iterator[None]:
    """Within, cuDNN tries its convolutions on every new shape, and takes the fastest from then on.

    Not in PyTorch's deterministic mode: it need not find the same one the next time.
    """
    before = torch.backends.cudnn.benchmark
    try:
        if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
            torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@cache
def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second in the product of two large square matrices.

    It is what this device can do at best: the best of five, after one that does not count; of fewer
    where they take long, as float16 does on most CPUs.
    """
    side = SIDE.get(device.type, SIDE_ELSEWHERE)
    # as good as random, and nothing is drawn
    numbers = torch.arange(side**2, device=device, dtype=torch.float32).sin_()
    a = numbers.view(side, side).to(getattr(torch, precision))

    seconds: list[float] = []
    for _ in range(6):
        started = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > MEASURED_SECONDS:
            break

    warm = seconds[1:] or seconds
    return 2 * side**3 / min(warm)
