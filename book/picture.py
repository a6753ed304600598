"""The first page's picture: what SimCLR does, on a photograph.

    python book/picture.py          draws book/_static/overview.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image

from lib import figures
from lib.augmentations import RECIPES, apply, draw

TARGET = Path(__file__).parent / "_static" / "overview.png"


def main(target: Path = TARGET) -> None:
    """Draw the picture. The photograph comes with scikit-learn, which says whose it is and under which licence."""
    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 60:487]
    pair = [apply(photo, draw(RECIPES["uva"], 1, seed=3, step=0, view=v))[0] for v in range(2)]
    figures.use_style()
    figures.pipeline(photo[0] / 255, torch.stack(pair).clamp(0, 1)).savefig(target, dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
