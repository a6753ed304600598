import pytest
import torch
import torchvision

from lib import InputError
from lib.encoders import Model


@pytest.mark.parametrize("encoder, width", [("resnet18", 512), ("resnet50", 2048), ("slim", 128)])
@pytest.mark.parametrize("stem, size", [("cifar", 32), ("imagenet", 96)])
def test_shapes(encoder, width, stem, size):
    h, z = Model(encoder, stem, "mlp", 64).eval()(torch.randn(2, 3, size, size))
    assert h.shape == (2, width) and z.shape == (2, 64)


def test_resnets_with_the_imagenet_stem_are_torchvisions_own():
    theirs = torchvision.models.resnet18(weights=None).eval()
    ours = Model("resnet18", "imagenet", "none").eval()
    ours.encoder.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x)[0], theirs(x))


def test_the_cifar_stem_keeps_the_resolution():
    net = Model("resnet18", "cifar").encoder
    assert net.maxpool(net.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_parameter_counts_are_the_published_ones():
    """SupContrast's ResNet-18 and ResNet-50 for CIFAR have 11.17 M and 23.50 M parameters without a classifier."""
    count = {name: sum(p.numel() for p in Model(name, "cifar", "none").parameters())
             for name in ("resnet18", "resnet50", "slim")}
    assert count["resnet18"] == 11_168_832 and count["resnet50"] == 23_500_352
    assert count["slim"] == pytest.approx(0.31e6, rel=0.02)


def test_heads():
    for head, layers in (("none", 0), ("linear", 1), ("mlp", 2)):
        model = Model("slim", "cifar", head, 16)
        assert sum(isinstance(m, torch.nn.Linear) for m in model.head.modules()) == layers
    h, z = Model("slim", head="none").eval()(torch.randn(2, 3, 32, 32))
    assert torch.equal(h, z)


def test_pixels_are_the_image_itself():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(Model("pixels", head="none")(x)[0], x.flatten(1))


@pytest.mark.parametrize("given, words", [({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
                                          ({"stem": "x"}, "unknown stem 'x'"), ({"head": "x"}, "unknown head 'x'"),
                                          ({"encoder": "pixels"}, "'pixels' has no trainable")])
def test_unknown_names(given, words):
    with pytest.raises(InputError, match=words):
        Model(**given)


def test_the_memory_of_a_view_is_what_autograd_keeps_and_half_as_much_again():
    """Against the storages that a real forward pass saves, weights apart, in a batch of eight."""
    model, kept = Model("slim", "cifar", "mlp", 16), {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def note(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        z = model(torch.randn(8, 3, 32, 32))[1]
    real = sum(x.untyped_storage().nbytes() for x in kept.values()) / 8
    assert z.requires_grad and 1.4 * real < model.memory(32) < 1.8 * real
    assert 3.5 < model.memory(64) / model.memory(32) < 4.5
