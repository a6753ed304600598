import math

import numpy as np
import pytest
import torch

from benchmarks import measure
from lib import InputError, losses, tiles
from tests import reference


@pytest.fixture(
    params=[(3, 0), (3, tiles.KEEP), (512, tiles.KEEP)],
    ids=["many tiles", "kept tiles", "one tile"],
)
def tile(request, monkeypatch):
    """Small tiles, so that small cases have many of them, the last ones smaller, kept or not; and
    the usual one."""
    monkeypatch.setitem(tiles.TILE, "cpu", request.param[0])
    monkeypatch.setattr(tiles, "KEEP", request.param[1])


def embeddings(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("n, d, temperature", [(2, 3, 0.5), (5, 7, 0.07), (17, 8, 1.0)])
def test_nt_xent_equals_the_papers_equation(n, d, temperature, tile):
    z = embeddings(2, n, d)
    assert losses.nt_xent(z, temperature).item() == pytest.approx(
        reference.nt_xent(z, temperature), abs=1e-10
    )


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("positives", ["out", "in"])
def test_sup_con_equals_the_papers_equation(views, temperature, positives, tile):
    z, labels = (
        embeddings(views, 9, 6),
        [7, 7, -3, 7, 10**12, -3, 7, 5, 5],
    )  # 10**12 is alone in its class
    ours = losses.sup_con(z, torch.tensor(labels), temperature, positives).item()
    assert ours == pytest.approx(reference.sup_con(z, labels, temperature, positives), abs=1e-10)


LABELS = torch.tensor([0, 1, 0, 2])
SINGLE = torch.tensor([0, 1, 0, 2, 1, 3, 0, 4])  # single views; three are alone in their class
LOSSES = {
    "nt_xent": lambda z, t=0.5: losses.nt_xent(z, t),
    "sup_con": lambda z, t=0.5: losses.sup_con(z, LABELS, t),
    "sup_con in": lambda z, t=0.5: losses.sup_con(z, LABELS, t, "in"),
    "sup_con single": lambda z, t=0.5: losses.sup_con(z.flatten(0, 1)[None], SINGLE, t),
    "sup_con single in": lambda z, t=0.5: losses.sup_con(z.flatten(0, 1)[None], SINGLE, t, "in"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences_the_first_time_and_the_second(name, tile):
    z = embeddings(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], z)
    assert torch.autograd.gradgradcheck(LOSSES[name], z)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_transcription_by_central_differences(name):
    """An oracle without autograd: the loops of the paper, moved a little either way."""
    z, step = embeddings(2, 4, 3, seed=5), 1e-6
    wanted = torch.zeros_like(z)
    for place in np.ndindex(*z.shape):
        up, down = z.clone(), z.clone()
        up[place] += step
        down[place] -= step
        wanted[place] = (by_reference(name, up) - by_reference(name, down)) / (2 * step)
    moved = z.clone().requires_grad_()
    LOSSES[name](moved).backward()
    assert torch.allclose(moved.grad, wanted, atol=1e-8)


def by_reference(name, z):
    if name == "nt_xent":
        return reference.nt_xent(z, 0.5)
    z, labels = (z.flatten(0, 1)[None], SINGLE) if "single" in name else (z, LABELS)
    return reference.sup_con(z, labels.tolist(), 0.5, "in" if name.endswith("in") else "out")


def test_a_graph_can_be_walked_twice():
    z = embeddings(2, 6, 4).requires_grad_()
    loss = losses.nt_xent(z, 0.3)
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    assert torch.equal(first, second)


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.03, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_stable_at_every_temperature(name, temperature, tile):
    """Down to 0.01 the similarities span 200 nats: one shift for all rows would lose them."""
    z = embeddings(2, 4, 3, seed=2)
    z[1, 0] = -z[0, 0]  # a positive as far away as can be
    single, double = z.float().requires_grad_(), z.clone().requires_grad_()
    one, two = LOSSES[name](single, temperature), LOSSES[name](double, temperature)
    one.backward()
    two.backward()
    assert one.item() == pytest.approx(two.item(), rel=2e-6, abs=2e-6)
    assert torch.allclose(
        single.grad.double(), double.grad, rtol=1e-4, atol=1e-4 * float(double.grad.abs().max())
    )


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_the_primitive_takes_rows_of_any_length_and_masks_by_labels(temperature, tile):
    z, labels, g = 5 * embeddings(11, 4).requires_grad_(), torch.arange(11) % 4, embeddings(11)
    for given, out in (
        (None, torch.eye(11).bool()),
        (labels, torch.eye(11).bool() | (labels[:, None] != labels)),
    ):
        ours = tiles.log_sum_exp_others(z, temperature, given)
        wanted = (z @ z.T / temperature).masked_fill(out, -math.inf).logsumexp(1)
        assert torch.allclose(ours, wanted)
        gradients = [
            torch.autograd.grad(value, z, g, retain_graph=True)[0] for value in (ours, wanted)
        ]
        assert torch.allclose(*gradients)
    alone = tiles.log_sum_exp_others(z, temperature, torch.arange(11).clamp(max=9))
    assert alone.isinf().tolist() == [True] * 9 + [False] * 2


def test_no_matrix_of_all_pairs_is_made():
    """8,192 embeddings: one matrix is 268 MB. The dense form shows that the measurement would see
    it."""
    megabytes = {
        name: measure.in_own_process("loss", "--memory-of", *name.split(), "8192") / 1e6
        for name in (
            "nt_xent ours",
            "sup_con ours",
            "sup_con_in ours",
            "contrast ours",
            "nt_xent dense",
        )
    }
    assert megabytes.pop("nt_xent dense") > 268 and max(megabytes.values()) < 60, megabytes


def test_in_is_never_more_than_out_and_equal_with_one_positive():
    z, labels = embeddings(2, 12, 5), torch.arange(12) % 3
    out, inside = losses.sup_con(z, labels, 0.2), losses.sup_con(z, labels, 0.2, "in")
    assert inside < out
    unique = torch.arange(12)
    assert losses.sup_con(z, unique, 0.2, "in").item() == pytest.approx(
        losses.nt_xent(z, 0.2).item(), abs=1e-12
    )


def test_base_temperature_is_supcontrasts_factor():
    z = embeddings(2, 5, 4)
    assert losses.nt_xent(z, 0.5, base_temperature=0.07).item() == pytest.approx(
        losses.nt_xent(z, 0.5).item() * 0.5 / 0.07
    )
    labels = torch.arange(5) % 2
    assert losses.sup_con(z, labels, 0.1, base_temperature=0.07).item() == pytest.approx(
        losses.sup_con(z, labels, 0.1).item() / 0.7
    )


@pytest.mark.parametrize("n", [2, 37, 300])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_peers_agree(n, temperature):
    """pytorch-metric-learning and lightly, at random and odd sizes, values and gradients."""
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning import losses as peers

    z, images = embeddings(2, n, 16).requires_grad_(), torch.arange(n)
    labels = torch.from_numpy(np.random.default_rng(n).integers(0, 5, n))
    pairs = [
        (losses.nt_xent(z, temperature), NTXentLoss(temperature)(z[0], z[1])),
        (
            losses.sup_con(z, labels, temperature),
            peers.SupConLoss(temperature)(z.flatten(0, 1), labels.repeat(2)),
        ),
    ]
    if n < 300:  # its NT-Xent is cubic in n
        pairs.append(
            (
                losses.nt_xent(z, temperature),
                peers.NTXentLoss(temperature)(z.flatten(0, 1), images.repeat(2)),
            )
        )
    for ours, theirs in pairs:
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        (mine,) = torch.autograd.grad(ours, z, retain_graph=True)
        (other,) = torch.autograd.grad(theirs, z, retain_graph=True)
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7)


def test_five_views_agree_with_pytorch_metric_learning():
    from pytorch_metric_learning.losses import SupConLoss

    for views in (1, 2, 5):
        z, labels = embeddings(views, 13, 8), torch.arange(13) % 3
        theirs = SupConLoss(0.2)(z.flatten(0, 1), labels.repeat(views)).item()
        assert losses.sup_con(z, labels, 0.2).item() == pytest.approx(theirs, rel=1e-6)


def test_the_contrast_is_counted_as_by_hand(tile):
    z, labels = embeddings(2, 30, 6), torch.arange(30) % 7
    labels[29] = -5  # alone with its label, but for its other view
    for views, given in ((2, None), (2, labels), (1, labels), (3, labels)):
        some = torch.cat([z, embeddings(1, 30, 6, seed=1)])[:views]
        rows = torch.nn.functional.normalize(some.flatten(0, 1), dim=1)
        of = (torch.arange(30) if given is None else given).repeat(views).tolist()
        top1, top5, near, far = [], [], [], []
        for i in range(len(rows)):
            cosines = sorted(
                ((float(rows[i] @ rows[j]), of[j] == of[i]) for j in range(len(rows)) if j != i),
                reverse=True,
            )
            near += [c for c, same in cosines if same]
            far += [c for c, same in cosines if not same]
            if of.count(of[i]) > 1:
                top1.append(cosines[0][1])
                top5.append(any(same for _, same in cosines[:5]))
        wanted = np.mean(top1), np.mean(top5), np.mean(near), np.mean(far)
        assert losses.contrast(some, given) == pytest.approx(wanted, abs=1e-9)


def test_a_collapsed_encoder_has_no_contrast_and_one_class_no_negatives():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(2, 9, 1, generator=generator)  # equal up to rounding only
    collapsed = torch.randn(1, 1, 50, generator=generator) * lengths
    assert losses.contrast(collapsed)[:2] == (0, 0)
    assert losses.contrast(collapsed, torch.zeros(9, dtype=torch.int64)) == pytest.approx(
        (1, 1, 1, None)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    """Half precision ends where the loss begins: its products and sums stay in float32, forward and
    backward."""
    z, labels = embeddings(2, 64, 32).to(dtype).requires_grad_(), torch.arange(64) % 5
    for loss in (
        lambda: losses.nt_xent(z, 0.1),
        lambda: losses.sup_con(z, labels, 0.1),
        lambda: losses.sup_con(z, labels, 0.1, "in"),
        lambda: losses.nt_xent(z, 0.01),
    ):
        plain = loss()
        (gradient,) = torch.autograd.grad(plain, z)
        with torch.autocast("cpu", dtype):
            cast = loss()
            assert cast.dtype == torch.float32 and torch.equal(plain, cast)
            assert torch.equal(torch.autograd.grad(cast, z)[0], gradient)


@pytest.mark.parametrize("keep, temperature", [(False, 0.5), (True, 0.5), (False, 0.01)])
def test_the_operator_is_one_that_pytorch_can_trace(keep, temperature, tile):
    """Schema, shapes without data, autograd and compilation, with fixed sizes and without, as
    PyTorch checks them."""
    z, labels = embeddings(11, 4).requires_grad_(keep), torch.arange(11) % 4
    for given in (None, labels):
        torch.library.opcheck(tiles._forward, (z, temperature, given, temperature > 0.02, keep))


def test_compiled_it_is_the_same():
    z, labels = embeddings(2, 40, 8).float(), torch.arange(40) % 5
    for eager in (lambda z: losses.nt_xent(z, 0.2), lambda z: losses.sup_con(z, labels, 0.2)):
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
        one, two = z.clone().requires_grad_(), z.clone().requires_grad_()
        a, b = eager(one), compiled(two)
        a.backward()
        b.backward()
        assert a.item() == pytest.approx(b.item(), abs=1e-6) and torch.allclose(
            one.grad, two.grad, atol=1e-7
        )


def test_golden_values_of_the_authors_own_tests():
    """google-research/supcon losses_test.py; unnormalised, hence held against the pieces the losses
    are made of."""
    e = torch.eye(3, dtype=torch.float64)
    z = torch.stack([e.flip(0), e.flip(0)])
    labels = torch.tensor([0, 0, 1])
    want = (1.5714991 + 1.5714991 + 0.9048324) / 3
    assert losses.sup_con(z, labels, 1.0).item() == pytest.approx(want, abs=1e-7)

    images = torch.tensor(
        [
            [[0.01, 0.02, 0.14], [0.38, 0.61, 0.50]],
            [[0.86, 0.97, 0.33], [0.26, 0.68, 0.45]],
            [[0.32, 0.64, 0.28], [0.45, 0.74, 0.73]],
        ],
        dtype=torch.float64,
    )
    rows = images.transpose(0, 1).reshape(6, 3)
    positive, count = losses.positives_by_class(rows, labels.repeat(2))
    anchors = losses.log_sum_exp_others(rows, 1.0) - positive
    assert count.tolist() == [3, 3, 1, 3, 3, 1]
    assert anchors.view(2, 3).mean(0).tolist() == pytest.approx(
        [1.6755852, 1.7973773, 1.5847100], abs=1e-6
    )
    inside = losses.log_sum_exp_others(rows, 1.0) - losses.log_sum_exp_others(
        rows, 1.0, labels.repeat(2)
    )
    anchors = inside + count.double().log()
    assert anchors.view(2, 3).mean(0).tolist() == pytest.approx(
        [1.6356678, 1.7135872, 1.5847100], abs=1e-6
    )
    normalised = [
        losses.log_sum_exp_others(z, 1.0) - losses.positives_by_class(z, labels.repeat(2))[0]
        for z in [torch.nn.functional.normalize(rows, dim=1)]
    ][0]
    assert normalised.view(2, 3).mean(0).tolist() == pytest.approx(
        [1.65024, 1.68711, 1.56697], abs=1e-5
    )


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_a_regular_tetrahedron_gives_log_3_at_every_temperature(temperature):
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert losses.nt_xent(corners.view(2, 2, 3), temperature).item() == pytest.approx(
        math.log(3), abs=1e-12
    )


def test_collapsed_embeddings_pay_chance_exactly():
    z = torch.ones(2, 8, 5, dtype=torch.float64)
    assert losses.nt_xent(z, 0.1).item() == pytest.approx(losses.chance(16), abs=1e-12)


def test_no_embedding_beats_the_floor():
    z = embeddings(1, 6, 4).repeat(2, 1, 1)
    assert losses.nt_xent(z, 0.5).item() > losses.floor(12, 1, 0.5)
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    simplex = torch.stack([corners, corners])  # the best there is
    assert losses.nt_xent(simplex, 0.5).item() == pytest.approx(losses.floor(8, 1, 0.5), abs=1e-12)
    labels = torch.arange(4).repeat(3)
    floor = losses.floor(24, 5, 0.1)
    assert losses.sup_con(simplex.repeat(1, 3, 1), labels, 0.1).item() == pytest.approx(
        floor, abs=1e-12
    )
    assert losses.floor(2048, 1, 0.5) * 0.5 / 0.07 == pytest.approx(
        40.2, abs=0.05
    )  # "the loss is stuck at 41"
    assert losses.floor(8, 7, 0.5) == pytest.approx(
        losses.chance(8)
    )  # one class: only positives are left


def test_sup_con_with_unique_labels_is_nt_xent():
    z = embeddings(2, 11, 5)
    assert losses.sup_con(z, torch.arange(11), 0.2).item() == pytest.approx(
        losses.nt_xent(z, 0.2).item(), abs=1e-12
    )


def test_neither_the_order_of_images_nor_of_views_matters():
    z, labels, places = embeddings(2, 10, 4), torch.arange(10) % 3, torch.randperm(10)
    for loss, moved in (
        (losses.nt_xent(z, 0.3), losses.nt_xent(z.flip(0)[:, places], 0.3)),
        (losses.sup_con(z, labels, 0.3), losses.sup_con(z.flip(0)[:, places], labels[places], 0.3)),
    ):
        assert loss.item() == pytest.approx(moved.item(), abs=1e-12)


def test_length_does_not_matter_and_half_precision_is_summed_in_float32():
    z = embeddings(2, 64, 16).float()
    assert losses.nt_xent(100 * z, 0.1).item() == pytest.approx(
        losses.nt_xent(z, 0.1).item(), abs=1e-5
    )
    assert losses.nt_xent(z.half(), 0.1).dtype == torch.float32
    assert losses.nt_xent(z.bfloat16(), 0.1).item() == pytest.approx(
        losses.nt_xent(z, 0.1).item(), abs=0.05
    )


def test_a_row_of_zeros_has_no_direction():
    z = embeddings(2, 5, 4)
    z[0, 1] = 0
    z.requires_grad_()
    loss = losses.nt_xent(z, 0.5)
    loss.backward()
    rows = (z / z.norm(dim=-1, keepdim=True)).nan_to_num().flatten(0, 1)
    similarity = (rows @ rows.T / 0.5).fill_diagonal_(-math.inf)
    wanted = torch.nn.functional.cross_entropy(similarity, torch.arange(10).roll(5))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12) and z.grad.isfinite().all()


def test_without_any_positive_the_loss_and_its_gradient_are_zero():
    z = embeddings(1, 4, 3).requires_grad_()
    loss = losses.sup_con(z, torch.arange(4), 0.1)
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda z: losses.nt_xent(z, 0), "temperature must be greater than 0"),
        (lambda z: losses.nt_xent(z, math.nan), "temperature must be greater than 0"),
        (lambda z: losses.nt_xent(z[:1], 1), "two views"),
        (lambda z: losses.nt_xent(z[:, :1], 1), "at least two images"),
        (lambda z: losses.nt_xent(z[0], 1), "shape"),
        (
            lambda z: losses.nt_xent(z, 1, base_temperature=0),
            "base_temperature must be greater than 0",
        ),
        (lambda z: losses.nt_xent(z * math.nan, 1), "z has a NaN or an infinity"),
        (lambda z: losses.sup_con(z / 0, torch.arange(4), 1), "z has a NaN or an infinity"),
        (
            lambda z: losses.sup_con(z, torch.arange(3), 1),
            "one integer label for each of the 4 images",
        ),
        (
            lambda z: losses.sup_con(z, torch.ones(4), 1),
            "one integer label for each of the 4 images, got torch.float32",
        ),
        (
            lambda z: losses.sup_con(z, torch.arange(4), 1, "between"),
            "positives must be 'out' or 'in', got 'between'",
        ),
        (lambda z: losses.contrast(z / 0), "z has a NaN or an infinity"),
        (
            lambda z: losses.contrast(z, torch.arange(3)),
            "one integer label for each of the 4 images",
        ),
        (lambda z: losses.contrast(z[:1]), "no embedding of the batch has a positive"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(embeddings(2, 4, 3))


def test_gradients_are_the_same_to_the_bit_every_time():
    """A gather in the forward pass would be an unordered sum over threads in the backward pass."""
    z, labels = embeddings(2, 256, 128).float().requires_grad_(), torch.arange(256) % 10
    gradients = [torch.autograd.grad(losses.sup_con(z, labels, 0.1), z)[0] for _ in range(30)]
    assert all(torch.equal(gradients[0], other) for other in gradients)
