import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lib import InputError
from lib.compute.cost import flops, memory
from lib.encoders import Model


@pytest.mark.parametrize(
    "encoder, width", [("resnet18", 512), ("resnet50", 2048), ("slim", 128), ("resnet9", 128)]
)
@pytest.mark.parametrize("stem, size", [("cifar", 32), ("imagenet", 96)])
def test_shapes(encoder, width, stem, size):
    h, z = Model(encoder, stem, "mlp", 64).eval()(torch.randn(2, 3, size, size))
    assert h.shape == (2, width) and z.shape == (2, 64)


def test_resnets_with_the_imagenet_stem_are_torchvisions_own():
    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.fc = nn.Identity()
    ours = Model("resnet18", "imagenet", "none").eval()
    ours.encoder.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x)[0], theirs(x))


def test_the_cifar_stem_keeps_the_resolution():
    net = Model("resnet18", "cifar").encoder
    assert net.maxpool(net.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "encoder, millions", [("resnet18", 11.168832), ("resnet50", 23.500352), ("slim", 0.31)]
)
def test_parameter_counts_are_the_published_ones(encoder, millions):
    """SupContrast's ResNets for CIFAR without a classifier have 11.17 M and 23.50 M parameters."""
    tolerance = 0.02 if encoder == "slim" else 1e-9
    assert count(Model(encoder, "cifar", "none")) == pytest.approx(1e6 * millions, rel=tolerance)


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def test_the_narrow_resnet9_is_as_described():
    """Channels and strides written out; 0.46 M parameters, 19 M multiplications a small view."""
    net = Model("resnet9", "cifar", "none")
    assert count(net) == 463_552
    assert 18.5e6 < flops(net, 32) / 6 < 19.5e6  # forward and twice as much backward, two for each

    shapes = []
    for layer in convolutions(net):
        side, stride = layer.kernel_size[0], layer.stride[0]
        shapes.append((layer.in_channels, layer.out_channels, side, stride, layer.bias))
    assert shapes == [
        (3, 32, 4, 2, None),
        (32, 64, 3, 1, None),
        (64, 64, 3, 1, None),
        (64, 64, 3, 1, None),
        (64, 128, 3, 1, None),
        (128, 128, 3, 1, None),
        (128, 128, 3, 1, None),
    ]


def test_the_narrow_resnet9_is_its_layers_in_order():
    net = Model("resnet9", "cifar", "none").train()
    weights = iter([layer.weight for layer in convolutions(net)])

    def layer(x, stride=1, pool=False):
        x = F.conv2d(x, next(weights), stride=stride, padding=1)
        if pool:
            x = F.max_pool2d(x, 2)
        return F.relu(F.batch_norm(x, None, None, training=True))

    def residual(x):
        return x + layer(layer(x))

    images = torch.randn(4, 3, 32, 32)
    x = layer(images, stride=2)
    x = residual(layer(x, pool=True))
    x = residual(layer(x, pool=True))
    torch.testing.assert_close(net(images)[0], x.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["slim", "resnet9"])
def test_the_initial_weights_have_the_variance_of_their_fan_out(encoder):
    layers = convolutions(Model(encoder).encoder)
    large = [layer for layer in layers if layer.weight.numel() > 4000]
    assert len(large) > 3
    for layer in large:
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("head, layers", [("none", 0), ("linear", 1), ("mlp", 2)])
def test_heads(head, layers):
    model = Model("slim", "cifar", head, 16)
    assert [type(module) for module in model.head.modules()].count(nn.Linear) == layers


def test_without_a_head_z_is_h():
    h, z = Model("slim", head="none").eval()(torch.randn(2, 3, 32, 32))
    assert torch.equal(h, z)


def test_pixels_are_the_image_itself():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(Model("pixels", head="none")(x)[0], x.flatten(1))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
        ({"stem": "x"}, "unknown stem 'x'"),
        ({"head": "x"}, "unknown head 'x'"),
        ({"encoder": "pixels"}, "'pixels' has no trainable"),
        ({"encoder": "kmeans32"}, "'kmeans32' has no trainable"),
    ],
)
def test_unknown_names(given, words):
    with pytest.raises(InputError, match=words):
        Model(**given)


def test_the_memory_of_a_view_is_what_autograd_keeps_and_half_as_much_again():
    """Against the storages that a real forward pass saves, weights apart, in a batch of eight."""
    model = Model("slim", "cifar", "mlp", 16)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        _, z = model(torch.randn(8, 3, 32, 32))
    assert z.requires_grad  # until here nothing is freed
    a_view = sum(storage.nbytes() for storage in kept.values()) / 8
    assert 1.4 * a_view < memory(model, 32) < 1.8 * a_view
    assert 3.5 < memory(model, 64) / memory(model, 32) < 4.5
