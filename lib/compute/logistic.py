"""The minimum of a penalised logistic regression: the numerics of the linear probe."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOOK = 10  # iterations of L-BFGS between looks at the objective
ITERATIONS = 400  # at most
TOLERANCE = 1e-4  # of the objective
FLOOR = 0.01  # nats, so that an objective that goes to zero ends


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (A,) along the principal axes of x (N, D), centred, and the orthonormal axes (D, A).

    A = D; with fewer features than dimensions A <= N, the axes along which there is any variance: a
    penalised minimum lies in their span. They come from the N x N matrix of products then, as all D
    of raw pixels would take hours.
    """
    n, dimensions = x.shape
    wide = x.cpu().double()  # on the CPU: MPS has neither
    if n >= dimensions:
        variance, axes = torch.linalg.eigh(wide.T @ wide / n)
        variance = variance.clamp(min=0)
    else:
        variance, left = torch.linalg.eigh(wide @ wide.T / n)
        varies = variance > 1e-10 * variance[-1].clamp(min=1e-10)
        variance = variance[varies]
        axes = wide.T @ left[:, varies] / (n * variance).sqrt()
    return variance.to(x.dtype).to(x.device), axes.to(x.dtype).to(x.device)


def minimise(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Weight (C, D) and bias (C,) at the minimum of ``cross-entropy + sum penalty weight^2 / 2``.

    And that minimum, in nats, as it was at the last look.

    x: (N, D).
    y: (N,) classes.
    weight, bias: where to begin.
    penalty: (D,).

    The cross-entropy is the mean. At the minimum: LOOK iterations lowered the objective by
    TOLERANCE of it (or of FLOOR) or less.
    """
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=LOOK,
        history_size=LOOK,
        tolerance_grad=1e-7,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits = torch.addmm(bias[:, None], weight, x.T)  # (C, N)
        if x.device.type == "cpu":  # softmax over columns is many times faster here,
            loss = F.cross_entropy(logits[None], y[None])
        else:  # and not deterministic on GPUs
            loss = F.cross_entropy(logits.T, y)
        loss = loss + (penalty * weight.square()).sum() / 2
        loss.backward()
        return loss.detach()

    now = float(solver.step(objective))  # a step returns what the objective was at its start
    for _ in range(ITERATIONS // LOOK):
        before = now
        now = float(solver.step(objective))
        if before - now <= TOLERANCE * max(before, FLOOR):
            break
    return weight.detach(), bias.detach(), now
