import pytest
import torch
import torch.nn.functional as F
import torchvision

from lib import InputError
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
    ours = Model("resnet18", "imagenet", "none").eval()
    ours.encoder.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    )
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x)[0], theirs(x))


def test_the_cifar_stem_keeps_the_resolution():
    net = Model("resnet18", "cifar").encoder
    assert net.maxpool(net.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_parameter_counts_are_the_published_ones():
    """SupContrast's ResNet-18 and ResNet-50 for CIFAR have 11.17 M and 23.50 M parameters without a
    classifier."""
    count = {
        name: sum(p.numel() for p in Model(name, "cifar", "none").parameters())
        for name in ("resnet18", "resnet50", "slim")
    }
    assert count["resnet18"] == 11_168_832 and count["resnet50"] == 23_500_352
    assert count["slim"] == pytest.approx(0.31e6, rel=0.02)


def test_the_narrow_resnet9_is_as_described():
    """Channels, strides and order, written out; 0.46 M parameters, 19 M multiplications a view of
    32 x 32 pixels."""
    net = Model("resnet9", "cifar", "none").train()
    assert sum(p.numel() for p in net.parameters()) == 463_552
    convolutions = [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.bias)
        for m in net.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]
    assert convolutions == [
        (3, 32, 4, 2, None),
        (32, 64, 3, 1, None),
        (64, 64, 3, 1, None),
        (64, 64, 3, 1, None),
        (64, 128, 3, 1, None),
        (128, 128, 3, 1, None),
        (128, 128, 3, 1, None),
    ]
    assert 18.5e6 < net.flops(32) / 6 < 19.5e6  # forward and twice as much backward, two for each
    weights = iter(m.weight for m in net.modules() if isinstance(m, torch.nn.Conv2d))

    def layer(x, stride=1, pool=False):
        x = F.conv2d(x, next(weights), stride=stride, padding=1)
        x = F.max_pool2d(x, 2) if pool else x
        return F.relu(F.batch_norm(x, None, None, training=True))

    def residual(x):
        return x + layer(layer(x))

    x = torch.randn(4, 3, 32, 32)
    by_hand = residual(layer(residual(layer(layer(x, stride=2), pool=True)), pool=True)).mean(
        (2, 3)
    )
    torch.testing.assert_close(net(x)[0], by_hand, rtol=1e-4, atol=1e-5)


def test_the_initial_weights_have_the_variance_of_their_fan_out():
    for encoder in ("slim", "resnet9"):
        for module in Model(encoder).encoder.modules():
            if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 4000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_heads():
    for head, layers in (("none", 0), ("linear", 1), ("mlp", 2)):
        model = Model("slim", "cifar", head, 16)
        assert sum(isinstance(m, torch.nn.Linear) for m in model.head.modules()) == layers
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
