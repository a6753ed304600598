import math

import numpy as np
import pytest
import torch

from lib import InputError, losses
from tests import reference


def embeddings(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("n, d, temperature", [(2, 3, 0.5), (5, 7, 0.07), (17, 8, 1.0)])
def test_nt_xent_equals_the_papers_equation(n, d, temperature):
    z = embeddings(2, n, d)
    assert losses.nt_xent(z, temperature).item() == pytest.approx(reference.nt_xent(z, temperature), abs=1e-10)


@pytest.mark.parametrize("views", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_sup_con_equals_the_papers_equation(views, temperature):
    z, labels = embeddings(views, 9, 6), [7, 7, -3, 7, 10**12, -3, 7, 5, 5]     # 10**12 is alone in its class
    ours = losses.sup_con(z, torch.tensor(labels), temperature).item()
    assert ours == pytest.approx(reference.sup_con(z, labels, temperature), abs=1e-10)


def test_gradients_agree_with_finite_differences():
    z, labels = embeddings(2, 4, 3).requires_grad_(), torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda z: losses.nt_xent(z, 0.5), z)
    assert torch.autograd.gradcheck(lambda z: losses.sup_con(z, labels, 0.5), z)


def test_golden_values_of_the_authors_own_tests():
    """google-research/supcon losses_test.py; unnormalised, hence held against the pieces the losses are made of."""
    e = torch.eye(3, dtype=torch.float64)
    z = torch.stack([e.flip(0), e.flip(0)])
    labels = torch.tensor([0, 0, 1])
    want = (1.5714991 + 1.5714991 + 0.9048324) / 3
    assert losses.sup_con(z, labels, 1.0).item() == pytest.approx(want, abs=1e-7)

    images = torch.tensor([[[.01, .02, .14], [.38, .61, .50]], [[.86, .97, .33], [.26, .68, .45]],
                           [[.32, .64, .28], [.45, .74, .73]]], dtype=torch.float64)
    rows = images.transpose(0, 1).reshape(6, 3)
    positive, count = losses.positives_by_class(rows, labels.repeat(2))
    anchors = losses.log_sum_exp_others(rows, 1.0) - positive
    assert count.tolist() == [3, 3, 1, 3, 3, 1]
    assert anchors.view(2, 3).mean(0).tolist() == pytest.approx([1.6755852, 1.7973773, 1.5847100], abs=1e-6)
    normalised = [losses.log_sum_exp_others(z, 1.0) - losses.positives_by_class(z, labels.repeat(2))[0]
                  for z in [torch.nn.functional.normalize(rows, dim=1)]][0]
    assert normalised.view(2, 3).mean(0).tolist() == pytest.approx([1.65024, 1.68711, 1.56697], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_a_regular_tetrahedron_gives_log_3_at_every_temperature(temperature):
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert losses.nt_xent(corners.view(2, 2, 3), temperature).item() == pytest.approx(math.log(3), abs=1e-12)


def test_collapsed_embeddings_pay_chance_exactly():
    z = torch.ones(2, 8, 5, dtype=torch.float64)
    assert losses.nt_xent(z, 0.1).item() == pytest.approx(losses.chance(16), abs=1e-12)


def test_no_embedding_beats_the_floor():
    z = embeddings(1, 6, 4).repeat(2, 1, 1)
    assert losses.nt_xent(z, 0.5).item() > losses.floor(12, 1, 0.5)
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    simplex = torch.stack([corners, corners])                                   # the best there is
    assert losses.nt_xent(simplex, 0.5).item() == pytest.approx(losses.floor(8, 1, 0.5), abs=1e-12)
    labels = torch.arange(4).repeat(3)
    floor = losses.floor(24, 5, 0.1)
    assert losses.sup_con(simplex.repeat(1, 3, 1), labels, 0.1).item() == pytest.approx(floor, abs=1e-12)
    assert losses.floor(2048, 1, 0.5) * 0.5 / 0.07 == pytest.approx(40.2, abs=0.05)     # "the loss is stuck at 41"
    assert losses.floor(8, 7, 0.5) == pytest.approx(losses.chance(8))           # one class: only positives are left


def test_sup_con_with_unique_labels_is_nt_xent():
    z = embeddings(2, 11, 5)
    assert losses.sup_con(z, torch.arange(11), 0.2).item() == pytest.approx(losses.nt_xent(z, 0.2).item(), abs=1e-12)


def test_neither_the_order_of_images_nor_of_views_matters():
    z, labels, places = embeddings(2, 10, 4), torch.arange(10) % 3, torch.randperm(10)
    for loss, moved in ((losses.nt_xent(z, 0.3), losses.nt_xent(z.flip(0)[:, places], 0.3)),
                        (losses.sup_con(z, labels, 0.3), losses.sup_con(z.flip(0)[:, places], labels[places], 0.3))):
        assert loss.item() == pytest.approx(moved.item(), abs=1e-12)


def test_length_does_not_matter_and_half_precision_is_summed_in_float32():
    z = embeddings(2, 64, 16).float()
    assert losses.nt_xent(100 * z, 0.1).item() == pytest.approx(losses.nt_xent(z, 0.1).item(), abs=1e-5)
    assert losses.nt_xent(z.half(), 0.1).dtype == torch.float32
    assert losses.nt_xent(z.bfloat16(), 0.1).item() == pytest.approx(losses.nt_xent(z, 0.1).item(), abs=0.05)


def test_without_any_positive_the_loss_and_its_gradient_are_zero():
    z = embeddings(1, 4, 3).requires_grad_()
    loss = losses.sup_con(z, torch.arange(4), 0.1)
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


@pytest.mark.parametrize("call, words", [
    (lambda z: losses.nt_xent(z, 0), "temperature must be greater than 0"),
    (lambda z: losses.nt_xent(z, math.nan), "temperature must be greater than 0"),
    (lambda z: losses.nt_xent(z[:1], 1), "two views"),
    (lambda z: losses.nt_xent(z[:, :1], 1), "at least two images"),
    (lambda z: losses.nt_xent(z[0], 1), "shape"),
    (lambda z: losses.sup_con(z, torch.arange(3), 1), "one label for each of the 4 images"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(embeddings(2, 4, 3))


def test_gradients_are_the_same_to_the_bit_every_time():
    """A gather in the forward pass would be an unordered sum over threads in the backward pass."""
    z, labels = embeddings(2, 256, 128).float().requires_grad_(), torch.arange(256) % 10
    gradients = [torch.autograd.grad(losses.sup_con(z, labels, 0.1), z)[0] for _ in range(30)]
    assert all(torch.equal(gradients[0], other) for other in gradients)
