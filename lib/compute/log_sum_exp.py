"""Log-sum-exp over all pairs of rows, tile by tile, in O(M D) memory.

It is the denominator of both losses, exact. The similarities ``z_i . z_j`` are a symmetric matrix,
so only the tiles on and above its diagonal are computed, and each serves its rows and its columns.
The forward pass keeps one sum a row; the backward pass computes every tile again and adds

    (g_i p_ij + g_j p_ji) z_j

where p_ij is the softmax of row i. That is two M x M x D products in all, where the dense form
needs three and stores M x M numbers several times. Where all tiles together are small they wait for
the backward pass. On devices in DENSE it is the dense form.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lib import InputError

TILE = {"cpu": 512}  # rows; a tile of 1 MB stays in a core's cache
TILE_ELSEWHERE = 4096  # on accelerators few large products are faster than many small ones
KEEP = {"cpu": 2**25}  # bytes of tiles that wait for the backward pass: up to M = 3,584
KEEP_ELSEWHERE = 2**28  # up to M = 8,192
# devices that compute the whole M x M matrix: before macOS 15 what is written into a view is lost
DENSE = {"mps"}
STRIP = {"cpu": 2**18}  # similarities at a time, where a process sums its own rows only
STRIP_ELSEWHERE = 2**24
SAFE = 50  # |z_i . z_j| / t up to which exp, its sums and their inverses are normal float32 numbers


class Rows(NamedTuple):
    """The rows that this process sums, where several share the work, and how it gets the rest."""

    own: Tensor  # (M_r,) places of its rows
    gather: Callable[[Tensor], Tensor]  # its rows' values (M_r,) -> those of all rows (M,)


def log_sum_exp_others(
    z: Tensor,
    temperature: float,
    labels: Tensor | None = None,
    bound: float | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """``log sum_{j != i} exp(z_i . z_j / t)`` for every row i, or over the j of i's own label only.

    z: (M, D) float32 or float64, normalised or not.
    labels: (M,) integers, where only j of i's own label count.
    bound: a known upper bound of ``|z_i . z_j|``, 1 for normalised rows; it spares a look at the
        data.
    rows: where several processes have the same z, those that this one sums.

    Returns (M,); -inf where there is no such j. Differentiable in z, twice too, the second time in
    O(M^2) memory; with rows once, and the gradient is right in these rows and zero in the others.
    Sums are of z's own precision: lift halves before. Raises InputError for a temperature that is a
    tensor: its gradient would be lost.
    """
    if isinstance(temperature, Tensor):
        raise InputError("temperature must be a number, as float(temperature): it gets no gradient")
    if rows is not None:
        return _OwnRows.apply(z, temperature, labels, rows)
    if z.device.type in DENSE:
        with _in_full(z):
            return _dense(z, temperature, labels)
    if bound is None:
        bound = float(z.detach().square().sum(1).max())
    safe = bound / temperature <= SAFE
    keep = safe and z.requires_grad and torch.is_grad_enabled()
    return _forward(z, temperature, labels, safe, keep)[0]


@torch.no_grad()
def negatives_ahead(z: Tensor, labels: Tensor) -> Tensor:
    """How many rows of other labels are as similar to row i as the most similar of its own label.

    z: (M, D) float.
    labels: (M,) integers.

    Returns (M,) int64, every other label's row for a row without another of its own. A tie, to
    1e-6, counts as ahead: else a collapsed encoder would look perfect.
    """
    best = z.new_full((len(z),), -math.inf)
    count = torch.zeros_like(labels, dtype=torch.int64)
    for rows, columns, tile in _tiles(z):
        _similarities(z, 1, labels, rows, columns, tile)
        best[rows] = torch.maximum(best[rows], tile.amax(1))
        best[columns] = torch.maximum(best[columns], tile.amax(0))
    for rows, columns, tile in _tiles(z):
        _similarities(z, 1, None, rows, columns, tile)
        negative = labels[rows, None] != labels[columns]
        count[rows] = count[rows] + ((tile >= best[rows, None] - 1e-6) & negative).sum(1)
        if rows != columns:
            count[columns] = count[columns] + ((tile >= best[columns] - 1e-6) & negative).sum(0)
    return count


@torch.library.custom_op("contrastive::log_sum_exp_others", mutates_args=())
def _forward(
    z: Tensor, temperature: float, labels: Tensor | None, safe: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    kept = _room(z, keep)
    if safe:
        return _sum_of_exp(z, temperature, labels, kept).log_(), kept
    return _running_log_sum_exp(z, temperature, labels), kept


def _sum_of_exp(z: Tensor, temperature: float, labels: Tensor | None, kept: Tensor) -> Tensor:
    """``sum_{j != i} exp(z_i . z_j / t)`` (M,), no exponent being too large; tiles go to kept."""
    total, one = z.new_zeros(len(z)), z.new_ones(len(z))
    for rows, columns, tile in _tiles(z, kept):
        _similarities(z, temperature, labels, rows, columns, tile)
        tile.exp_()
        total[rows].addmv_(tile, one[columns])
        if rows != columns:
            total[columns].addmv_(tile.T, one[rows])
    return total


def _running_log_sum_exp(z: Tensor, temperature: float, labels: Tensor | None) -> Tensor:
    """The same in logarithms (M,), each sum relative to the highest exponent met so far."""
    total = z.new_zeros(len(z))
    highest = torch.full_like(total, -torch.finfo(z.dtype).max)

    def add(places: slice, exponents: Tensor) -> None:
        top = torch.maximum(highest[places], exponents.amax(1))
        before = total[places] * (highest[places] - top).exp()
        total[places] = before + (exponents - top[:, None]).exp().sum(1)
        highest[places] = top

    for rows, columns, tile in _tiles(z):
        _similarities(z, temperature, labels, rows, columns, tile)
        add(rows, tile)
        if rows != columns:
            add(columns, tile.T)
    return total.log_().add_(highest)


@torch.library.custom_op("contrastive::log_sum_exp_others_backward", mutates_args=())
def _backward(
    g: Tensor,
    z: Tensor,
    lse: Tensor,
    kept: Tensor,
    temperature: float,
    labels: Tensor | None,
    safe: bool,
) -> Tensor:
    grad = torch.zeros_like(z)
    alone = lse.isinf()  # rows without any j
    g, lse = g.masked_fill(alone, 0), lse.masked_fill(alone, 0)
    weight = g * (-lse).exp()  # for safe alone: else it may overflow

    for (rows, columns, tile), (_, _, share) in zip(_tiles(z, kept), _tiles(z)):
        if not len(kept):
            _similarities(z, temperature, labels, rows, columns, tile)
        if safe:
            if not len(kept):
                tile.exp_()
            torch.add(weight[rows, None], weight[columns], out=share)
            share.mul_(tile)
        else:
            other = (tile - lse[columns]).exp_().mul_(g[columns])
            share = tile.sub_(lse[rows, None]).exp_().mul_(g[rows, None]).add_(other)

        grad[rows].addmm_(share, z[columns], alpha=1 / temperature)
        if rows != columns:
            grad[columns].addmm_(share.T, z[rows], alpha=1 / temperature)
    return grad


def _pairs(z: Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of every tile on and above the diagonal."""
    size = TILE.get(z.device.type, TILE_ELSEWHERE)
    parts = [slice(start, min(start + size, len(z))) for start in range(0, len(z), size)]
    return [(rows, columns) for place, rows in enumerate(parts) for columns in parts[place:]]


def _shape(rows: slice, columns: slice) -> tuple[int, int]:
    return rows.stop - rows.start, columns.stop - columns.start


def _room(z: Tensor, keep: bool) -> Tensor:
    """Memory for all tiles, one after the other, where it is wanted and small; else none."""
    room = sum(math.prod(_shape(*pair)) for pair in _pairs(z))
    most = KEEP.get(z.device.type, KEEP_ELSEWHERE)
    if not keep or room * z.element_size() > most:
        room = 0
    return z.new_empty(room)


def _tiles(z: Tensor, kept: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and memory of every tile: its own in ``kept``, or the same for all of them."""
    pairs = _pairs(z)
    if kept is None or not len(kept):
        room = z.new_empty(math.prod(_shape(*pairs[0])))
        for rows, columns in pairs:
            shape = _shape(rows, columns)
            yield rows, columns, room[: math.prod(shape)].view(shape)
        return

    start = 0
    for rows, columns in pairs:
        shape = _shape(rows, columns)
        stop = start + math.prod(shape)
        yield rows, columns, kept[start:stop].view(shape)
        start = stop


def _similarities(
    z: Tensor, temperature: float, labels: Tensor | None, rows: slice, columns: slice, tile: Tensor
) -> None:
    """Fill a tile with ``z_i . z_j / t``; what must not count is -inf."""
    torch.addmm(tile, z[rows], z[columns].T, beta=0, alpha=1 / temperature, out=tile)
    if rows == columns:
        tile.fill_diagonal_(-math.inf)
    if labels is not None:
        tile.masked_fill_(labels[rows, None] != labels[columns], -math.inf)


@_forward.register_fake
def _(z, temperature, labels, safe, keep):
    return z.new_empty(len(z)), _room(z, keep)


@_backward.register_fake
def _(g, z, lse, kept, temperature, labels, safe):
    return torch.empty_like(z)


def _remember(ctx, inputs, output) -> None:
    z, ctx.temperature, labels, ctx.safe, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z, labels, *output)


def _differentiate(ctx, g: Tensor | None, _):
    if g is None:
        return None, None, None, None, None
    z, labels, lse, kept = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph: the gradient itself will be differentiated
        with _in_full(z):
            lse = _dense(z, ctx.temperature, labels)
            (grad,) = torch.autograd.grad(lse, z, g, create_graph=True)
    else:
        grad = _backward(g, z, lse, kept, ctx.temperature, labels, ctx.safe)
    return grad, None, None, None, None


def _in_full(z: Tensor) -> torch.autocast:
    """Within, autocast of whoever calls halves no product."""
    return torch.autocast(z.device.type, enabled=False)


def _dense(z: Tensor, temperature: float, labels: Tensor | None) -> Tensor:
    """The same by the M x M matrix, by operations that can be differentiated again and again."""
    left_out = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if labels is not None:
        left_out = left_out | (labels[:, None] != labels)
    alone = left_out.all(1)  # rows without any j; in place of a gradient that is no number, zero
    exponents = (z @ z.T / temperature).masked_fill(left_out & ~alone[:, None], -math.inf)
    return exponents.logsumexp(1).masked_fill(alone, -math.inf)


_forward.register_autograd(_differentiate, setup_context=_remember)


class _OwnRows(torch.autograd.Function):
    """``log sum_{j != i} exp(z_i . z_j / t)`` where each process sums its own rows, in strips."""

    @staticmethod
    def forward(ctx, z: Tensor, temperature: float, labels: Tensor | None, rows: Rows) -> Tensor:
        with _in_full(z):
            strips = _strips(z, rows.own, temperature, labels)
            sums = [strip.logsumexp(1) for _, strip in strips]
        lse = rows.gather(torch.cat(sums))  # (M,)

        ctx.save_for_backward(z, lse, rows.own, labels)
        ctx.temperature = temperature
        return lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor):
        z, lse, own, labels = ctx.saved_tensors
        alone = lse.isinf()  # rows without any j
        g, lse = g.masked_fill(alone, 0), lse.masked_fill(alone, 0)

        gradient = torch.zeros_like(z)
        with _in_full(z):
            for rows, strip in _strips(z, own, ctx.temperature, labels):
                share = (strip - lse[rows, None]).exp_().mul_(g[rows, None])
                share.add_((strip - lse).exp_().mul_(g))
                gradient[rows] = share @ z / ctx.temperature
        return gradient, None, None, None


def _strips(
    z: Tensor, own: Tensor, temperature: float, labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, and their similarities (R, M) with all of z, -inf where unwanted."""
    room = STRIP.get(z.device.type, STRIP_ELSEWHERE)
    for rows in own.split(max(1, room // len(z))):
        strip = (z[rows] @ z.T).div_(temperature)
        strip.scatter_(1, rows[:, None], -math.inf)
        if labels is not None:
            strip.masked_fill_(labels[rows, None] != labels, -math.inf)
        yield rows, strip
