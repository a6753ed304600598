"""Views a second: two views of each image, by the published recipes, beside the usual ways.

Each case turns 512 images into 1,024 views. "ours" is what training does on the device, on a GPU
by compiled code; "batched" is what it does on other devices, here on the CPU. "PIL" is torchvision
on PIL images in a DataLoader with two workers that are already running, as in SupContrast and in
UvA's tutorial. kornia works on batches of 256, as ours do; it draws the order of the colour
operations once for a batch, the others once for an image. Images are smooth random ones, in memory;
where there is a GPU, on it, and PIL's views are left on the CPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Case
from lib.augmentations import COMPILED_FROM, RECIPES, Recipe, draw, views, views_in_batches_of
from lib.hardware import choose_device

PEERS = ("kornia", "pillow")
IMAGES, BATCH, WORKERS = 512, 256, 2
CASES = {"32x32, SupContrast's recipe": (32, "supcontrast"), "96x96, UvA's recipe": (96, "uva")}


def smooth(n: int, size: int) -> Tensor:
    """Random images (n, 3, size, size) uint8 with the structure that colour operations feel."""
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size, mode="bilinear").mul(255).to(torch.uint8)


def by_us(images: Tensor, make: Callable[[Tensor, int], Tensor]) -> Case:
    """Two views of every batch. make: (images (N, 3, H, W), step) -> (2, N, 3, S, S)."""

    def case() -> None:
        for step, batch in enumerate(images.split(BATCH)):
            make(batch, step)

    return case


def views_in_batches(images: Tensor, recipe: Recipe, step: int) -> Tensor:
    """``augmentations.views`` as it is computed where there is no compiled code."""
    drawn = [draw(recipe, len(images), 0, step, view) for view in range(2)]
    return views_in_batches_of(images, drawn)


class Pairs(torch.utils.data.Dataset):
    """Two views of a PIL image, by torchvision."""

    def __init__(self, images: Tensor, recipe: Recipe):
        from PIL import Image
        from torchvision import transforms as T

        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        steps = [
            T.RandomResizedCrop(recipe.size, scale=recipe.crop_scale),
            T.RandomHorizontalFlip(recipe.flip),
            T.RandomApply([T.ColorJitter(*recipe.jitter)], recipe.jitter_probability),
            T.RandomGrayscale(recipe.greyscale),
        ]
        if recipe.blur_sigma:
            steps.append(T.GaussianBlur(recipe.blur_kernel, recipe.blur_sigma))
        steps += [T.ToTensor(), T.Normalize(recipe.mean, recipe.std)]
        self.transform = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[i]), self.transform(self.images[i])


def by_pil(images: Tensor, recipe: Recipe) -> Case:
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


def by_kornia(images: Tensor, recipe: Recipe) -> Case:
    """kornia's augmentations, each with its own parameters for every image."""
    import kornia.augmentation as K

    steps = [
        K.RandomResizedCrop((recipe.size, recipe.size), scale=recipe.crop_scale),
        K.RandomHorizontalFlip(p=recipe.flip),
        K.ColorJitter(*recipe.jitter, p=recipe.jitter_probability),
        K.RandomGrayscale(p=recipe.greyscale),
    ]
    if recipe.blur_sigma:
        kernel = (recipe.blur_kernel, recipe.blur_kernel)
        steps.append(K.RandomGaussianBlur(kernel, recipe.blur_sigma, p=1.0))
    steps.append(K.Normalize(torch.tensor(recipe.mean), torch.tensor(recipe.std)))
    transform = torch.nn.Sequential(*steps).to(images.device)

    def case() -> None:
        for batch in images.split(BATCH):
            for _ in range(2):
                transform(batch.float() / 255)

    return case


def cases(size: int, name: str, n: int, device: torch.device) -> dict[str, Case]:
    """Every way to make the views, by the library's name."""
    images = smooth(n, size)
    on_device = images.to(device)
    recipe = replace(RECIPES[name], size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    late = COMPILED_FROM  # where there is a compiler
    made = {"ours": by_us(on_device, lambda batch, step: views(batch, recipe, 0, late + step))}
    if device.type == "cpu":  # elsewhere it is ours
        made["batched"] = by_us(
            on_device, lambda batch, step: views_in_batches(batch, recipe, step)
        )
    made["PIL"] = by_pil(images, recipe)
    made["kornia"] = by_kornia(on_device, recipe)
    return made


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks views``."""
    parser.add_argument("--images", type=measure.count, default=IMAGES, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device = choose_device()
    rows = []
    for case, (size, recipe) in CASES.items():
        seconds = measure.interleaved(cases(size, recipe, args.images, device), args.repetitions)
        for library, taken in seconds.items():
            rate = measure.spread([2 * args.images / second for second in taken])
            ratio = measure.ratios(taken, seconds["ours"])
            rows.append(
                {"case": case, "library": library, "views_per_second": rate, "times_ours": ratio}
            )
            print(
                f"{case:28} {library:8} {rate['median']:8,.0f} views/s  of ours "
                f"{measure.in_words(ratio)}",
                flush=True,
            )
    settings = {
        "images": args.images,
        "batch": BATCH,
        "workers": WORKERS,
        "repetitions": args.repetitions,
    }
    print(measure.keep("views", device, rows, PEERS, settings, args.results))
