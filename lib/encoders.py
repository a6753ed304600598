"""Encoders f and projection heads g: ``h = f(x)``, ``z = g(h)``.

h is the representation, kept for use downstream; z is the embedding, on which the contrastive loss
acts. For cross-entropy the head is the linear classifier, and z are its logits.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lib import InputError, unknown
from lib.compute.kmeans import KMeans


def _resnet(block, layers, stem: str) -> tuple[nn.Module, int]:
    """torchvision's ResNet without its classifier.

    The stem "cifar" has a 3x3/1 convolution in place of 7x7/2, and no max-pool.
    """
    net = ResNet(block, layers)
    width = net.fc.in_features
    net.fc = nn.Identity()
    if stem == "cifar":  # SupContrast and SimCLR (appendix B.9) on 32x32 images
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net, width


def _slim(stem: str) -> tuple[nn.Module, int]:
    """0.31 M parameters for CPUs: a 3x3/2 stem and three of ResNet's basic blocks, 32-64-128 wide.

    The "imagenet" stem adds the max-pool, for images of 96 pixels and more.
    """

    def down(inputs: int, outputs: int) -> BasicBlock:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs)
        )
        return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)

    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity(),
        BasicBlock(32, 32),
        down(32, 64),
        down(64, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    _initialise_convolutions(net)
    return net, 128


def _resnet9(stem: str) -> tuple[nn.Module, int]:
    """0.46 M parameters for CPUs: David Page's ResNet-9 (DAWNBench, CIFAR-10), a quarter as wide.

    Its stem halves the image at once, and it pools after a convolution where others stride. 19 M
    multiply-adds on 32 x 32 pixels. The "imagenet" stem adds a max-pool, for images of 64 pixels
    and more.
    """
    net = nn.Sequential(
        *_conv_norm(3, 32, kernel=4, stride=2),  # (B, 32, S / 2, S / 2)
        nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity(),
        *_conv_norm(32, 64, pool=True),  # (B, 64, S / 4, S / 4)
        _Residual(64),
        *_conv_norm(64, 128, pool=True),  # (B, 128, S / 8, S / 8)
        _Residual(128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    _initialise_convolutions(net)
    return net, 128


def _conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, pool: bool = False
) -> list[nn.Module]:
    """A convolution, a max-pool of 2 x 2 where wanted, BatchNorm and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return [*layers, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class _Residual(nn.Module):
    """Two convolutions, each with BatchNorm and ReLU, added to what goes in."""

    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(*_conv_norm(width, width), *_conv_norm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _initialise_convolutions(net: nn.Module) -> None:
    """Kaiming-normal weights by the fan out, as in torchvision's ResNet."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# By name, from the stem: the encoder and the width of h, which a head is made for. Without a width
# no head can follow, and no gradient trains the encoder.
ENCODERS: dict[str, Callable[[str], tuple[nn.Module, int]]] = {
    "resnet18": lambda stem: _resnet(BasicBlock, [2, 2, 2, 2], stem),
    "resnet34": lambda stem: _resnet(BasicBlock, [3, 4, 6, 3], stem),
    "resnet50": lambda stem: _resnet(Bottleneck, [3, 4, 6, 3], stem),
    "slim": _slim,
    "resnet9": _resnet9,
    "pixels": lambda stem: (nn.Flatten(), 0),  # no encoder: the baseline every encoder must beat
    "kmeans32": lambda stem: (KMeans(32), 0),  # no network: as wide as slim and resnet9
    "kmeans100": lambda stem: (KMeans(100), 0),
    "kmeans400": lambda stem: (KMeans(400), 0),
    "kmeans1600": lambda stem: (KMeans(1600), 0),
}
# What those that no gradient trains owe their features' quality to
BASELINES = {
    "pixels": "pixels",
    "kmeans32": "kmeans",
    "kmeans100": "kmeans",
    "kmeans400": "kmeans",
    "kmeans1600": "kmeans",
}
STEMS = ("imagenet", "cifar")
HEADS = ("none", "linear", "mlp")


def _head(kind: str, width: int, embedding: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, embedding)
    # as in SupContrast and the UvA tutorial: as wide inside as h, no BatchNorm, which SimCLR's has
    # after every layer
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, embedding)
    )


class Model(nn.Module):
    """Encoder f and projection head g.

    encoder: a name in ENCODERS.
    stem: "imagenet" or "cifar".
    head: "none", "linear" or "mlp".
    embedding: dimensions of z (with head "none" z is h).

    Raises InputError for an unknown name.
    """

    def __init__(
        self,
        encoder: str = "resnet18",
        stem: str = "cifar",
        head: str = "mlp",
        embedding: int = 128,
    ):
        super().__init__()
        named = {"encoder": (encoder, ENCODERS), "stem": (stem, STEMS), "head": (head, HEADS)}
        for kind, (value, known) in named.items():
            if value not in known:
                raise InputError(unknown(kind, value, known))
        if encoder in BASELINES and head != "none":
            raise InputError(
                f"the encoder '{encoder}' has no trainable features: its head must be 'none'"
            )
        self.encoder, width = ENCODERS[encoder](stem)
        self.head = _head(head, width, embedding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, 3, S, S) float, normalised. Returns h (B, width) and z (B, embedding)."""
        h = self.encoder(x)
        return h, self.head(h)
