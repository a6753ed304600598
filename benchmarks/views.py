"""Views a second: two views of each image, by the published recipes, beside the usual ways to make
them.

Each case turns 512 images into 1,024 views. "ours" is what training does on a CPU; "batched" is
what it does on other devices, here on the CPU too. "PIL" is torchvision on PIL images in a
DataLoader with two workers that are already running, as in SupContrast and in UvA's tutorial.
kornia works on batches of 256, as ours do; it draws the order of the colour operations once for a
batch, the others once for an image. Images are smooth random ones, in memory; where there is a GPU,
on it, and PIL's views are left on the CPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from lib import augmentations
from lib.augmentations import RECIPES, Recipe
from lib.hardware import choose_device

PEERS = ("kornia", "pillow")
IMAGES, BATCH, WORKERS = 512, 256, 2
CASES = {"32x32, SupContrast's recipe": (32, "supcontrast"), "96x96, UvA's recipe": (96, "uva")}


def smooth(n: int, size: int) -> Tensor:
    """Random images (n, 3, size, size) uint8 with some structure, since colour operations depend on
    it."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size, mode="bilinear").mul(255).to(torch.uint8)


def by_us(images: Tensor, recipe: Recipe, form: object) -> Callable[[], None]:
    """Two views of every batch, with the compiled form or (None) the batched one."""

    def case() -> None:
        there, augmentations.kernels = augmentations.kernels, form
        for step, batch in enumerate(images.split(BATCH)):
            augmentations.views(batch, recipe, 0, step)
        augmentations.kernels = there

    return case


class Pairs(torch.utils.data.Dataset):
    """Two views of a PIL image, by torchvision."""

    def __init__(self, images: Tensor, recipe: Recipe):
        from PIL import Image
        from torchvision import transforms as T

        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        jitter = T.RandomApply([T.ColorJitter(*recipe.jitter)], recipe.jitter_probability)
        blur = [T.GaussianBlur(recipe.blur_kernel, recipe.blur_sigma)] if recipe.blur_sigma else []
        self.transform = T.Compose(
            [
                T.RandomResizedCrop(recipe.size, scale=recipe.crop_scale),
                T.RandomHorizontalFlip(recipe.flip),
                jitter,
                T.RandomGrayscale(recipe.greyscale),
                *blur,
                T.ToTensor(),
                T.Normalize(recipe.mean, recipe.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[i]), self.transform(self.images[i])


def by_pil(images: Tensor, recipe: Recipe) -> Callable[[], None]:
    """An epoch of a DataLoader."""
    loader = torch.utils.data.DataLoader(
        Pairs(images, recipe),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )

    def case() -> None:
        for _ in loader:
            pass

    return case


def by_kornia(images: Tensor, recipe: Recipe) -> Callable[[], None]:
    """kornia's augmentations, each with its own parameters for every image."""
    import kornia.augmentation as K

    blur = (
        [K.RandomGaussianBlur((recipe.blur_kernel,) * 2, recipe.blur_sigma, p=1.0)]
        if recipe.blur_sigma
        else []
    )
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((recipe.size,) * 2, scale=recipe.crop_scale),
        K.RandomHorizontalFlip(p=recipe.flip),
        K.ColorJitter(*recipe.jitter, p=recipe.jitter_probability),
        K.RandomGrayscale(p=recipe.greyscale),
        *blur,
        K.Normalize(torch.tensor(recipe.mean), torch.tensor(recipe.std)),
    ).to(images.device)

    def case() -> None:
        for batch in images.split(BATCH):
            for _ in range(2):
                transform(batch.float() / 255)

    return case


def cases(size: int, name: str, n: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Every way to make the views, by the library's name."""
    images, recipe = (
        smooth(n, size),
        replace(RECIPES[name], size=size, mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    there = images.to(device)
    batched = (
        {"batched": by_us(there, recipe, None)} if device.type == "cpu" else {}
    )  # elsewhere it is ours
    return {
        "ours": by_us(there, recipe, augmentations.kernels),
        **batched,
        "PIL": by_pil(images, recipe),
        "kornia": by_kornia(there, recipe),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks views``."""
    parser.add_argument("--images", type=int, default=IMAGES, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    rows, device = [], choose_device()
    for what, (size, name) in CASES.items():
        seconds = measure.interleaved(cases(size, name, args.images, device), args.repetitions)
        for library, taken in seconds.items():
            rate = measure.spread([2 * args.images / second for second in taken])
            ratio = measure.ratios(taken, seconds["ours"])
            rows.append(
                {"case": what, "library": library, "views_per_second": rate, "times_ours": ratio}
            )
            print(
                f"{what:28} {library:8} {rate['median']:8,.0f} views/s  of ours "
                f"{ratio['median']:.2f} "
                f"[{ratio['min']:.2f}, {ratio['max']:.2f}]",
                flush=True,
            )
    settings = {
        "images": args.images,
        "batch": BATCH,
        "workers": WORKERS,
        "repetitions": args.repetitions,
    }
    print(measure.keep("views", device, rows, PEERS, settings))
