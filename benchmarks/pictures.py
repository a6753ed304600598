"""Pictures from files: a folder made a data set, beside torchvision's ImageFolder in a DataLoader.

The folder holds the images of a data set enlarged to several sizes, as JPEG (RGB, grey, CMYK) and
PNG (RGB, RGBA, palette), and one in a hundred is broken. Both ways decode, bring the shorter side
to 96 pixels and cut out the centre; "ImageFolder" has two workers, passes over what it can't open,
and keeps what it made in memory. The memory is what an import adds to its process; that of workers
is not counted, so that there is none of the peer's.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks import measure
from lib import data, images

PEERS = ("torchvision", "pillow")
SIZE, WORKERS, BATCH = 96, 2, 256
SIDES = (32, 64, 96, 160, 320, 500)
FORMS = (
    ("jpg", "RGB"),
    ("jpg", "RGB"),
    ("jpg", "RGB"),
    ("jpg", "L"),
    ("jpg", "CMYK"),
    ("png", "RGB"),
    ("png", "RGBA"),
    ("png", "P"),
)


def write(root: Path, dataset: data.Dataset, n: int) -> None:
    """n files of mixed sizes, modes and formats, a folder for each class; the file's number
    decides."""
    pixels, labels = dataset.train.images.permute(0, 2, 3, 1).numpy(), dataset.train.labels.tolist()
    for number in range(n):
        place, side, (ending, mode) = (
            number % len(labels),
            SIDES[number % len(SIDES)],
            FORMS[number // 6 % len(FORMS)],
        )
        image = Image.fromarray(pixels[place]).resize((side, side + number % 7)).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if ending == "jpg" else "PNG")
        whole = buffer.getvalue()
        path = root / dataset.classes[labels[place]] / f"{number:06}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole[: len(whole) // 2] if number % 100 == 50 else whole)


def by_us(root: Path, out: Path) -> Callable[[], int]:
    """The import, to a file; returns how many images were whole."""
    return lambda: sum(images.make(root, SIZE, out)[0].values())


def opened(path: str) -> Image.Image | None:
    """What ImageFolder is given to open a file by."""
    try:
        return Image.open(path).convert("RGB")
    except OSError:
        return None


def whole(batch: list) -> list:
    """What the DataLoader is given to make a batch by."""
    return [np.asarray(image) for image, _ in batch if image is not None]


class OrNone(T.Compose):
    """torchvision's transforms of an image, where there is one."""

    def __call__(self, image: Image.Image | None) -> Image.Image | None:
        return image and super().__call__(image)


def of_torchvision(root: Path) -> ImageFolder:
    """The folder as torchvision's data set."""
    return ImageFolder(
        root,
        OrNone([T.Resize(SIZE, T.InterpolationMode.LANCZOS), T.CenterCrop(SIZE)]),
        loader=opened,
    )


def by_image_folder(root: Path) -> Callable[[], int]:
    """An epoch of a DataLoader; returns how many images were whole."""
    loader = torch.utils.data.DataLoader(
        of_torchvision(root), BATCH, num_workers=WORKERS, collate_fn=whole
    )
    return lambda: len(np.stack([image for batch in loader for image in batch]))


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks pictures``."""
    parser.add_argument(
        "--data", default="digits", help="whose images are written as files (default digits)"
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--memory-of", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    """Measure, print, keep the record."""
    device = torch.device("cpu")
    with TemporaryDirectory() as work:
        out = Path(work) / "made.npz"
        if args.memory_of:
            return print(measure.extra_memory(by_us(args.memory_of, out), device))
        rows, dataset = [], data.load(args.data)
        for files in (args.files // 4, args.files):
            root = Path(work) / str(files)
            write(root, dataset, files)
            cases = {"ours": by_us(root, out), "ImageFolder": by_image_folder(root)}
            with measure.quiet():
                found = {name: case() for name, case in cases.items()}
                seconds = measure.interleaved(cases, args.repetitions)
            for library, taken in seconds.items():
                row = {
                    "case": f"{files:,} files",
                    "library": library,
                    "whole": found[library],
                    "images_per_second": measure.spread([files / second for second in taken]),
                    "times_ours": measure.ratios(taken, seconds["ours"]),
                }
                if library == "ours":
                    row["extra_bytes"] = measure.in_own_process(
                        "pictures", "--memory-of", str(root)
                    )
                rows.append(row)
                print(
                    f"{row['case']:14} {library:12} {row['images_per_second']['median']:6,.0f} "
                    "images/s  of ours "
                    f"{row['times_ours']['median']:.2f}  {row.get('extra_bytes', 0) / 1e6:,.0f} "
                    "MB  "
                    f"{found[library]:,} whole",
                    flush=True,
                )
    settings = {
        "data": args.data,
        "size": SIZE,
        "workers": WORKERS,
        "repetitions": args.repetitions,
    }
    print(measure.keep("pictures", device, rows, PEERS, settings))
