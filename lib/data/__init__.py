"""Data sets: from a name to images in splits, and from one's own pictures to a data set.

``dataset`` holds what a data set is and how it is split, drawn from and put in order; ``arrays``
says what it is made of. ``loading`` finds one by name; ``downloads`` fetches the public ones;
``archives`` reads an .npz with suspicion; ``oddities`` says what in one may surprise. ``folders``,
``decoding`` and ``pictures`` turn a folder of pictures into a data set.
"""

from lib.data.arrays import build
from lib.data.dataset import Dataset, Split
from lib.data.loading import data_root, load

__all__ = ["Dataset", "Split", "build", "data_root", "load"]
