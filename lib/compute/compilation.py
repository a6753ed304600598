"""Whether an encoder is compiled for its training: on GPUs that gain by it, in runs that last."""

import warnings

import torch
from torch import Tensor, nn

from lib import in_a_line
from lib.hardware import compiles

CAPABILITY = (8, 0)  # Ampere and newer, which multiply so fast that all the rest is what takes long
STEPS = 2000  # fewer are soon done
PAYS = 15 * 60  # seconds of training, of which compiling takes one or two minutes
SHARE = 0.3  # of the matrix rate that a training reaches about, to tell how long it takes
SMALL = 512  # views of a step up to which a GPU waits for its host


def is_offered(device: torch.device) -> bool:
    """Whether PyTorch compiles for it (``hardware.compiles``), and it is a GPU that gains by it."""
    return compiles(device) and torch.cuda.get_device_capability(device) >= CAPABILITY


def mode_of(flops: float, rate: float, views: int) -> str | None:
    """The mode of ``torch.compile`` for a training of so many operations; None: it does not pay.

    rate: floating-point operations a second in a product of matrices, on that device.
    views: of a step.

    "reduce-overhead" records a step's kernels as a CUDA graph, which takes memory and pays where a
    step is short.
    """
    if flops / (SHARE * rate) < PAYS:
        return None
    return "reduce-overhead" if views <= SMALL else "default"


def go_on_without(error: Exception, what: str, device: torch.device) -> None:
    """Say that something is amiss with the compiler; nothing is compiled from then on."""
    torch.compiler.set_stance("force_eager")
    warnings.warn(f"{what} not compiled for {device} ({in_a_line(error, 200)})", stacklevel=3)


class Compiled(nn.Module):
    """A model by a compiled forward and backward pass; the weights are the model's own.

    Its results are the model's up to rounding. Where the compiler fails on the forward pass the
    model runs as it is. What it raises on the backward pass is not caught; TORCH_COMPILE_DISABLE=1
    in the environment helps.
    """

    def __init__(self, model: nn.Module, mode: str, backend: str = "inductor"):
        super().__init__()
        # one shape for whole batches, one for the last of an epoch
        self.network = torch.compile(model, mode=mode, dynamic=False, backend=backend)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Views (N, 3, S, S) -> h and z, in memory that the next step leaves alone."""
        try:
            h, z = self.network(images)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            go_on_without(error, "the encoder is", images.device)
            h, z = self.network(images)
        return h, z.clone()
