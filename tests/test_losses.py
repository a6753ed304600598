import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from pytorch_metric_learning import losses as peers

from benchmarks import measure
from lib import InputError, losses
from lib.compute import log_sum_exp
from lib.compute.log_sum_exp import Rows, log_sum_exp_others
from tests import reference


@pytest.fixture(
    params=[(3, 0), (3, 2**25), (512, 2**25), (None, 0)],
    ids=["many tiles", "kept tiles", "one tile", "no tiles"],
)
def tile(request, monkeypatch):
    """Small tiles, so that small cases have many, the last ones smaller, kept or not; or usual.

    Or the whole matrix, as on Apple's devices.
    """
    size, kept_bytes = request.param
    if size is None:
        monkeypatch.setattr(log_sum_exp, "DENSE", {"cpu"})
        return
    monkeypatch.setitem(log_sum_exp.TILE, "cpu", size)
    monkeypatch.setitem(log_sum_exp.KEEP, "cpu", kept_bytes)


def embeddings(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def gradient(loss, z):
    return torch.autograd.grad(loss, z, retain_graph=True)[0]


def approx(value, **tolerance):
    """The same number, of a tensor the one in it, to 1e-12 unless it is said."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    return pytest.approx(value, **tolerance or {"abs": 1e-12})


# --------------------------------------------------------------------------------------------------
# The papers' equations


@pytest.mark.parametrize("n, d, temperature", [(2, 3, 0.5), (5, 7, 0.07), (17, 8, 1.0)])
def test_nt_xent_equals_the_papers_equation(n, d, temperature, tile):
    z = embeddings(2, n, d)
    wanted = reference.nt_xent(z, temperature)
    assert losses.nt_xent(z, temperature).item() == approx(wanted, abs=1e-10)


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("positives", ["out", "in"])
def test_sup_con_equals_the_papers_equation(views, temperature, positives, tile):
    z = embeddings(views, 9, 6)
    labels = [7, 7, -3, 7, 10**12, -3, 7, 5, 5]  # 10**12 is alone in its class
    ours = losses.sup_con(z, torch.tensor(labels), temperature, positives).item()
    assert ours == approx(reference.sup_con(z, labels, temperature, positives), abs=1e-10)


LABELS = torch.tensor([0, 1, 0, 2])
SINGLE = torch.tensor([0, 1, 0, 2, 1, 3, 0, 4])  # single views; three are alone in their class


def nt_xent(z, temperature=0.5, rows=None):
    return losses.nt_xent(z, temperature, rows=rows)


def sup_con(z, temperature=0.5, rows=None):
    return losses.sup_con(z, LABELS, temperature, rows=rows)


def sup_con_in(z, temperature=0.5, rows=None):
    return losses.sup_con(z, LABELS, temperature, "in", rows=rows)


def sup_con_single(z, temperature=0.5, rows=None):
    return losses.sup_con(z.flatten(0, 1)[None], SINGLE, temperature, rows=rows)


def sup_con_single_in(z, temperature=0.5, rows=None):
    return losses.sup_con(z.flatten(0, 1)[None], SINGLE, temperature, "in", rows=rows)


LOSSES = (nt_xent, sup_con, sup_con_in, sup_con_single, sup_con_single_in)


def by_reference(loss, z):
    """The same by the loops of the paper."""
    if loss is nt_xent:
        return reference.nt_xent(z, 0.5)
    labels = LABELS
    if loss in (sup_con_single, sup_con_single_in):
        z, labels = z.flatten(0, 1)[None], SINGLE
    positives = "in" if loss in (sup_con_in, sup_con_single_in) else "out"
    return reference.sup_con(z, labels.tolist(), 0.5, positives)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences_the_first_time_and_the_second(loss, tile):
    z = embeddings(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, z)
    assert torch.autograd.gradgradcheck(loss, z)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_the_transcription_by_central_differences(loss):
    """An oracle without autograd: the loops of the paper, moved a little either way."""
    z, step = embeddings(2, 4, 3, seed=5), 1e-6
    wanted = torch.zeros_like(z)
    for place in np.ndindex(*z.shape):
        up, down = z.clone(), z.clone()
        up[place] += step
        down[place] -= step
        wanted[place] = (by_reference(loss, up) - by_reference(loss, down)) / (2 * step)

    z.requires_grad_()
    torch.testing.assert_close(gradient(loss(z), z), wanted, rtol=0, atol=1e-8)


def test_golden_values_of_the_authors_own_tests():
    """google-research/supcon losses_test.py; the first normalised, the others not.

    Hence the others are held against the pieces the losses are made of.
    """
    corners = torch.eye(3, dtype=torch.float64).flip(0)
    labels = torch.tensor([0, 0, 1])
    wanted = (1.5714991 + 1.5714991 + 0.9048324) / 3
    ours = losses.sup_con(torch.stack([corners, corners]), labels, 1.0)
    assert ours.item() == approx(wanted, abs=1e-7)

    images = torch.tensor(
        [
            [[0.01, 0.02, 0.14], [0.38, 0.61, 0.50]],
            [[0.86, 0.97, 0.33], [0.26, 0.68, 0.45]],
            [[0.32, 0.64, 0.28], [0.45, 0.74, 0.73]],
        ],
        dtype=torch.float64,
    )
    rows = images.transpose(0, 1).reshape(6, 3)
    labels = labels.repeat(2)
    positive, count = losses.positives_by_class(rows, labels)
    assert count.tolist() == [3, 3, 1, 3, 3, 1]
    everything = log_sum_exp_others(rows, 1.0)
    assert by_image(everything - positive) == pytest.approx(
        [1.6755852, 1.7973773, 1.5847100], abs=1e-6
    )
    inside = log_sum_exp_others(rows, 1.0, labels) - count.double().log()
    assert by_image(everything - inside) == pytest.approx(
        [1.6356678, 1.7135872, 1.5847100], abs=1e-6
    )

    rows = F.normalize(rows, dim=1)
    positive, _ = losses.positives_by_class(rows, labels)
    anchors = log_sum_exp_others(rows, 1.0) - positive
    assert by_image(anchors) == pytest.approx([1.65024, 1.68711, 1.56697], abs=1e-5)


def by_image(anchors):
    """Mean over two views of a loss for each anchor."""
    return anchors.view(2, -1).mean(0).tolist()


# --------------------------------------------------------------------------------------------------
# The peers


@pytest.mark.parametrize("n", [2, 37, 300])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_peers_agree(n, temperature):
    """pytorch-metric-learning and lightly, at random and odd sizes, values and gradients."""
    z = embeddings(2, n, 16).requires_grad_()
    labels = torch.from_numpy(np.random.default_rng(n).integers(0, 5, n))
    unsupervised = losses.nt_xent(z, temperature)
    agree(unsupervised, NTXentLoss(temperature)(z[0], z[1]), z)
    theirs = peers.SupConLoss(temperature)(z.flatten(0, 1), labels.repeat(2))
    agree(losses.sup_con(z, labels, temperature), theirs, z)
    if n < 300:  # this one is cubic in n
        images = torch.arange(n).repeat(2)
        agree(unsupervised, peers.NTXentLoss(temperature)(z.flatten(0, 1), images), z)


def agree(ours, theirs, z):
    assert ours.item() == approx(theirs, rel=1e-6)
    assert torch.allclose(gradient(ours, z), gradient(theirs, z), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_any_number_of_views_agrees_with_pytorch_metric_learning(views):
    z, labels = embeddings(views, 13, 8), torch.arange(13) % 3
    theirs = peers.SupConLoss(0.2)(z.flatten(0, 1), labels.repeat(views))
    assert losses.sup_con(z, labels, 0.2).item() == approx(theirs, rel=1e-6)


# --------------------------------------------------------------------------------------------------
# Closed forms and invariances

# of a regular tetrahedron
CORNERS = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_a_regular_tetrahedron_gives_log_3_at_every_temperature(temperature):
    loss = losses.nt_xent(CORNERS.view(2, 2, 3), temperature)
    assert loss.item() == approx(math.log(3))


def test_collapsed_embeddings_pay_chance():
    z = torch.ones(2, 8, 5, dtype=torch.float64)
    assert losses.nt_xent(z, 0.1).item() == approx(losses.chance(16))


def test_no_embedding_beats_the_floor():
    z = embeddings(1, 6, 4).repeat(2, 1, 1)
    assert losses.nt_xent(z, 0.5).item() > losses.floor(12, 1, 0.5)

    simplex = torch.stack([CORNERS, CORNERS])  # the best there is
    assert losses.nt_xent(simplex, 0.5).item() == approx(losses.floor(8, 1, 0.5))
    labels = torch.arange(4).repeat(3)
    loss = losses.sup_con(simplex.repeat(1, 3, 1), labels, 0.1)
    assert loss.item() == approx(losses.floor(24, 5, 0.1))

    supcontrasts = losses.floor(2048, 1, 0.5) * losses.scale(0.5, 0.07)
    assert supcontrasts == approx(40.2, abs=0.05)  # "the loss is stuck at 41"
    assert losses.floor(8, 7, 0.5) == approx(losses.chance(8))  # one class: only positives are left


def test_sup_con_with_unique_labels_is_nt_xent():
    z = embeddings(2, 11, 5)
    assert losses.sup_con(z, torch.arange(11), 0.2).item() == approx(losses.nt_xent(z, 0.2))


def test_in_is_never_more_than_out_and_equal_with_one_positive():
    z, labels = embeddings(2, 12, 5), torch.arange(12) % 3
    assert losses.sup_con(z, labels, 0.2, "in") < losses.sup_con(z, labels, 0.2)
    inside = losses.sup_con(z, torch.arange(12), 0.2, "in")
    assert inside.item() == approx(losses.nt_xent(z, 0.2))


def test_a_temperature_that_is_a_tensor_is_refused():
    """Its gradient would be lost on the way, in part."""
    z = torch.randn(2, 8, 16)
    t = torch.tensor(0.5, requires_grad=True)
    for loss in (
        lambda: losses.nt_xent(z, t),
        lambda: losses.sup_con(z, torch.arange(8) % 3, t),
        lambda: losses.sup_con(z, torch.arange(8) % 3, t, positives="in"),
        lambda: losses.nt_xent(z, 0.5, base_temperature=torch.tensor([0.07])),
        lambda: log_sum_exp_others(z[0], t.detach()),
    ):
        with pytest.raises(
            InputError, match=r"temperature must be a number, as float\((base_)?temp"
        ):
            loss()


def test_a_temperature_may_be_any_real_number():
    z = torch.randn(2, 8, 16)
    assert losses.nt_xent(z, Fraction(1, 2)) == losses.nt_xent(z, np.float32(0.5))
    assert losses.nt_xent(z, Fraction(1, 2)) == losses.nt_xent(z, 0.5)


def test_labels_may_be_an_array():
    z, labels = torch.randn(2, 8, 16), np.arange(8) % 3
    assert losses.sup_con(z, labels, 0.1) == losses.sup_con(z, torch.from_numpy(labels), 0.1)
    assert losses.sup_con(z, labels.tolist(), 0.1) == losses.sup_con(
        z, torch.from_numpy(labels), 0.1
    )


def test_base_temperature_is_supcontrasts_factor():
    z, labels = embeddings(2, 5, 4), torch.arange(5) % 2
    scaled = losses.nt_xent(z, 0.5, base_temperature=0.07)
    assert scaled.item() == approx(losses.nt_xent(z, 0.5) * 0.5 / 0.07)
    scaled = losses.sup_con(z, labels, 0.1, base_temperature=0.07)
    assert scaled.item() == approx(losses.sup_con(z, labels, 0.1) / 0.7)


def test_neither_the_order_of_images_nor_of_views_matters():
    z, labels, places = embeddings(2, 10, 4), torch.arange(10) % 3, torch.randperm(10)
    moved = z.flip(0)[:, places]
    assert losses.nt_xent(moved, 0.3).item() == approx(losses.nt_xent(z, 0.3))
    loss = losses.sup_con(moved, labels[places], 0.3)
    assert loss.item() == approx(losses.sup_con(z, labels, 0.3))


def test_length_does_not_matter_and_half_precision_is_summed_in_float32():
    z = embeddings(2, 64, 16).float()
    loss = losses.nt_xent(z, 0.1)
    assert losses.nt_xent(100 * z, 0.1).item() == approx(loss, abs=1e-5)
    assert losses.nt_xent(z.half(), 0.1).dtype == torch.float32
    assert losses.nt_xent(z.bfloat16(), 0.1).item() == approx(loss, abs=0.05)


def test_a_row_of_zeros_has_no_direction():
    z = embeddings(2, 5, 4)
    z[0, 1] = 0
    z.requires_grad_()
    loss = losses.nt_xent(z, 0.5)

    rows = (z / z.norm(dim=-1, keepdim=True)).nan_to_num().flatten(0, 1)
    similarity = (rows @ rows.T / 0.5).fill_diagonal_(-math.inf)
    wanted = F.cross_entropy(similarity, torch.arange(10).roll(5))
    assert loss.item() == approx(wanted)
    assert gradient(loss, z).isfinite().all()


def test_a_row_of_zeros_gets_no_gradient_and_a_short_one_is_no_row_of_zeros():
    z = embeddings(2, 8, 16)
    z[0, 3] = 0
    z.requires_grad_()
    steps = gradient(losses.nt_xent(z, 0.5), z)
    assert not steps[0, 3].any()
    assert steps.isfinite().all()
    assert steps.abs().max() < 1

    short = embeddings(2, 8, 16).float()
    assert losses.nt_xent(1e-15 * short, 0.5).item() == approx(losses.nt_xent(short, 0.5))


def test_rows_too_long_for_their_length_are_told():
    with pytest.raises(InputError, match="or rows too long for torch.float32; look for them in"):
        losses.nt_xent(1e20 * embeddings(2, 8, 16).float(), 0.5)


def test_without_any_positive_the_loss_and_its_gradient_are_zero():
    z = embeddings(1, 4, 3).requires_grad_()
    loss = losses.sup_con(z, torch.arange(4), 0.1)
    assert loss.item() == 0 and not gradient(loss, z).any()


# --------------------------------------------------------------------------------------------------
# Contrast


@pytest.mark.parametrize("views, labelled", [(2, False), (2, True), (1, True), (3, True)])
def test_the_contrast_is_counted_as_by_hand(views, labelled, tile):
    z = torch.cat([embeddings(2, 30, 6), embeddings(1, 30, 6, seed=1)])[:views]
    labels = None
    classes = torch.arange(30)
    if labelled:
        classes = torch.arange(30) % 7
        classes[29] = -5  # alone with its label, but for its other views
        labels = classes
    wanted = contrast_by_hand(F.normalize(z.flatten(0, 1), dim=1), classes.repeat(views).tolist())
    assert losses.contrast(z, labels) == pytest.approx(wanted, abs=1e-9)


def contrast_by_hand(rows, classes):
    top1, top5, positive, negative = [], [], [], []
    for i, anchor in enumerate(rows):
        others = []
        for j, other in enumerate(rows):
            if j != i:
                others.append((float(anchor @ other), classes[j] == classes[i]))
        others.sort(reverse=True)
        for cosine, same in others:
            (positive if same else negative).append(cosine)

        if classes.count(classes[i]) > 1:
            top1.append(others[0][1])
            top5.append(any(same for _, same in others[:5]))
    return np.mean(top1), np.mean(top5), np.mean(positive), np.mean(negative)


def test_a_collapsed_encoder_has_no_contrast_and_one_class_no_negatives():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(2, 9, 1, generator=generator)  # equal up to rounding only
    collapsed = torch.randn(1, 1, 50, generator=generator) * lengths
    assert losses.contrast(collapsed)[:2] == (0, 0)
    one_class = torch.zeros(9, dtype=torch.int64)
    assert losses.contrast(collapsed, one_class) == pytest.approx((1, 1, 1, None))


# --------------------------------------------------------------------------------------------------
# The primitive: precision, memory, rows, compilation


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.03, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_is_stable_at_every_temperature(loss, temperature, tile):
    """Down to 0.01 the similarities span 200 nats: one shift for all rows would lose them."""
    z = embeddings(2, 4, 3, seed=2)
    z[1, 0] = -z[0, 0]  # a positive as far away as can be
    single, double = z.float().requires_grad_(), z.clone().requires_grad_()
    ours, wanted = loss(single, temperature), loss(double, temperature)
    assert ours.item() == approx(wanted, rel=2e-6, abs=2e-6)

    steps = gradient(wanted, double)
    largest = float(steps.abs().max())
    assert torch.allclose(gradient(ours, single).double(), steps, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_primitive_takes_rows_of_any_length_and_masks_by_labels(temperature, labelled, tile):
    z, g = 5 * embeddings(11, 4).requires_grad_(), embeddings(11)
    labels = None
    left_out = torch.eye(11).bool()
    if labelled:
        labels = torch.arange(11) % 4
        left_out = left_out | (labels[:, None] != labels)
    ours = log_sum_exp_others(z, temperature, labels)
    wanted = (z @ z.T / temperature).masked_fill(left_out, -math.inf).logsumexp(1)
    assert torch.allclose(ours, wanted)
    assert torch.allclose(gradient((g * ours).sum(), z), gradient((g * wanted).sum(), z))


def test_a_row_that_is_alone_with_its_label_has_no_sum(tile):
    labels = torch.arange(11).clamp(max=9)
    alone = log_sum_exp_others(embeddings(11, 4), 0.5, labels)
    assert alone.isinf().tolist() == [True] * 9 + [False] * 2


@pytest.mark.parametrize("own", [[0, 3, 4], [1, 2, 5, 6, 7]])
@pytest.mark.parametrize("room", [1, 2**18], ids=["many strips", "one strip"])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_process_that_sums_some_rows_has_the_gradient_of_those(
    loss, temperature, room, own, monkeypatch
):
    monkeypatch.setitem(log_sum_exp.STRIP, "cpu", room)
    z = embeddings(2, 4, 3).requires_grad_()
    sums_of_all = iter(gathered(loss, z, temperature))
    places = torch.tensor(own)

    def gather(sums):
        return next(sums_of_all).index_copy(0, places, sums)

    ours, wanted = loss(z, temperature, Rows(places, gather)), loss(z, temperature)
    assert ours.item() == approx(wanted)
    torch.testing.assert_close(
        gradient(ours, z).flatten(0, 1)[places], gradient(wanted, z).flatten(0, 1)[places]
    )


def gathered(loss, z, temperature):
    """What a loss gathers, one after the other: the sums of all rows, by one process alone."""
    everything = []

    def gather(sums):
        everything.append(sums)
        return sums

    loss(z, temperature, Rows(torch.arange(8), gather))
    return everything


def test_the_gradient_of_other_processes_rows_is_left_to_them():
    z = embeddings(8, 3).requires_grad_()
    rows = Rows(torch.tensor([2, 5]), lambda sums: torch.zeros(8).double())
    moved = gradient(log_sum_exp_others(z, 0.5, rows=rows).sum(), z)
    assert moved.any(1).nonzero()[:, 0].tolist() == [2, 5]


@pytest.mark.parametrize("form", ["rows", "dense", "twice"])
def test_autocast_changes_no_form_of_the_sums(form, monkeypatch):
    z = embeddings(64, 32).float().requires_grad_()
    rows = Rows(torch.arange(64), lambda sums: sums) if form == "rows" else None
    if form == "dense":
        monkeypatch.setattr(log_sum_exp, "DENSE", {"cpu"})

    def loss_and_steps(autocast: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = log_sum_exp_others(z, 0.07, rows=rows).mean()
        # PyTorch's own operations, of which the dense form is made, go backward outside
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and form != "dense"):
            (steps,) = torch.autograd.grad(loss, z, create_graph=form == "twice")
        return loss, steps

    for plain, cast in zip(loss_and_steps(False), loss_and_steps(True)):
        assert torch.equal(plain, cast)


def test_no_matrix_of_all_pairs_is_made():
    """8,192 embeddings: one matrix is 268 MB, which the dense form shows to be seen."""

    def megabytes(loss):
        return measure.in_own_process("loss", "--memory-of", *loss.split(), "8192") / 1e6

    assert megabytes("nt_xent dense") > 268
    for loss in ("nt_xent ours", "sup_con ours", "sup_con_in ours", "contrast ours"):
        assert megabytes(loss) < 60, loss


HALF_TESTED = {
    "nt_xent": lambda z: losses.nt_xent(z, 0.1),
    "nt_xent cold": lambda z: losses.nt_xent(z, 0.01),
    "sup_con": lambda z: losses.sup_con(z, torch.arange(64) % 5, 0.1),
    "sup_con in": lambda z: losses.sup_con(z, torch.arange(64) % 5, 0.1, "in"),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF_TESTED)
def test_autocast_changes_nothing(name, dtype):
    """Half precision ends where the loss begins: its sums stay in float32, forward and backward."""
    z = embeddings(2, 64, 32).to(dtype).requires_grad_()
    plain = HALF_TESTED[name](z)
    steps = gradient(plain, z)
    with torch.autocast("cpu", dtype):
        cast = HALF_TESTED[name](z)
        assert cast.dtype == torch.float32
        assert torch.equal(plain, cast)
        assert torch.equal(gradient(cast, z), steps)


@pytest.mark.parametrize("keep, temperature", [(False, 0.5), (True, 0.5), (False, 0.01)])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_operator_is_one_that_pytorch_can_trace(labelled, keep, temperature, tile):
    """Schema, shapes without data, autograd and compilation, as PyTorch checks them."""
    z = embeddings(11, 4).requires_grad_(keep)
    labels = torch.arange(11) % 4 if labelled else None
    safe = temperature > 0.02
    torch.library.opcheck(log_sum_exp._forward, (z, temperature, labels, safe, keep))


@pytest.mark.parametrize("name", ["nt_xent", "sup_con"])
def test_compiled_it_is_the_same(name):
    eager = HALF_TESTED[name]
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    z = embeddings(2, 64, 8).float().requires_grad_()
    ours, wanted = compiled(z), eager(z)
    assert ours.item() == approx(wanted, abs=1e-6)
    torch.testing.assert_close(gradient(ours, z), gradient(wanted, z), rtol=0, atol=1e-7)


def test_a_graph_can_be_walked_twice():
    z = embeddings(2, 6, 4).requires_grad_()
    loss = losses.nt_xent(z, 0.3)
    first = gradient(loss, z)
    assert torch.equal(first, gradient(loss, z))


def test_gradients_are_the_same_to_the_bit_every_time():
    """A gather in the forward pass would be an unordered sum over threads in the backward pass."""
    z, labels = embeddings(2, 256, 128).float().requires_grad_(), torch.arange(256) % 10
    first = gradient(losses.sup_con(z, labels, 0.1), z)
    for _ in range(29):
        assert torch.equal(first, gradient(losses.sup_con(z, labels, 0.1), z))


# --------------------------------------------------------------------------------------------------
# Bad input

FOUR = torch.arange(4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda z: losses.nt_xent(z, 0), "temperature must be at least 1e-30 and finite"),
        (lambda z: losses.nt_xent(z, math.nan), "temperature must be at least 1e-30 and finite"),
        (lambda z: losses.nt_xent(z[:1], 1), "two views"),
        (lambda z: losses.nt_xent(z[:, :1], 1), "at least two images"),
        (lambda z: losses.nt_xent(z[0], 1), "shape"),
        (lambda z: losses.nt_xent(z, 1, 0), "base_temperature must be at least 1e-30"),
        (lambda z: losses.nt_xent(z * math.nan, 1), "z has a NaN or an infinity"),
        (lambda z: losses.sup_con(z / 0, FOUR, 1), "z has a NaN or an infinity"),
        (lambda z: losses.sup_con(z, FOUR[:3], 1), "one integer label for each of the 4 images"),
        (lambda z: losses.sup_con(z, None, 1), "labels must be integers, .*, got None"),
        (lambda z: losses.sup_con(z, list("abab"), 1), r"labels must be integers, .*, got \['a'"),
        (lambda z: losses.sup_con(z, FOUR.float(), 1), "of the 4 images, got torch.float32"),
        (lambda z: losses.sup_con(z, FOUR + 1j, 1), "of the 4 images, got torch.complex64"),
        (
            lambda z: losses.sup_con(z, FOUR, 1, "between"),
            "positives must be 'out' or 'in', got 'between'",
        ),
        (lambda z: losses.contrast(z / 0), "z has a NaN or an infinity"),
        (lambda z: losses.contrast(z, FOUR[:3]), "one integer label for each of the 4 images"),
        (lambda z: losses.contrast(z[:1]), "no embedding of the batch has a positive"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(embeddings(2, 4, 3))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            (torch.randn(8, 4), torch.randn(8, 4)),
            r"two views go into one z: torch.stack\(\[z1, z2\]",
        ),
        (([[0.1]], 0.5), "z must be a tensor of floating-point numbers, got list"),
        ((np.zeros((2, 8, 4)), 0.5), "floating-point numbers, got ndarray"),
        ((torch.ones(2, 8, 4, dtype=torch.int64), 0.5), "floating-point numbers, got torch.int64"),
        ((torch.randn(2, 8, 4), "0.5"), "temperature must be a number, got '0.5'"),
        ((torch.randn(2, 8, 4), None), "temperature must be a number, got None"),
        ((torch.randn(2, 8, 4), [0.5]), r"temperature must be a number, got \[0.5\]"),
        ((torch.randn(2, 8, 4), 1e-40), "temperature must be at least 1e-30"),
        ((torch.randn(0, 8, 4), 0.5), r"\(views, images, dimensions\), got \(0, 8, 4\)"),
    ],
    ids=["two", "list", "array", "integers", "text", "none", "numbers", "tiny", "no views"],
)
def test_what_is_no_batch_of_embeddings_is_named(arguments, words):
    with pytest.raises(InputError, match=words):
        losses.nt_xent(*arguments)
