"""The solutions of the chapters' exercises, as a reader who copies them runs them."""

import re
import subprocess
import sys

from lib import ROOT
from tests import solutions


def test_the_code_of_every_solution_runs_after_its_chapter(site):
    command = [sys.executable, "-m", "tests.solutions"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    counts = dict(re.findall(r"^(\w+): (\d+) solutions$", done.stdout, re.MULTILINE))
    assert len(counts) >= 8
    assert counts["02_loss"] == "4"


def test_solutions_are_found_and_trainings_left_out():
    fold = "<details><summary>{}</summary>\n\n```python\n{}\n```\n\n</details>\n"
    text = fold.format("Hint", "no") + fold.format("Solution", "yes = 1")
    text += fold.format("Solution", "run_of(config)") + "```python\nno\n```"
    assert solutions.solutions([{"source": [text]}]) == ["yes = 1\n"]
