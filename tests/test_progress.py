"""Progress bars, on a terminal and in a file."""

import io
import sys
import time

import pytest

from lib import ROOT
from lib.progress import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, most", [(io.StringIO, 2), (Terminal, 4)])
def test_a_bar_is_written_rarely_into_a_file(stream, most, monkeypatch):
    """For more than a second: at its beginning, in a terminal once meanwhile, and at its end."""
    monkeypatch.setattr(sys, "stderr", stream())
    for _ in bar(range(12), ascii=True):
        time.sleep(0.1)
    states = sys.stderr.getvalue().count("\r")
    assert most - 2 < states <= most


def test_all_bars_are_made_in_one_place():
    places = []
    for path in sorted((ROOT / "lib").rglob("*.py")):
        if " tqdm(" in path.read_text(encoding="utf-8"):
            places.append(path.name)
    assert places == ["progress.py"]
