"""Each chapter's cells, and then the code of its solutions: a program for ``test_solutions``.

In one process, by the runs that the built book has left. Prints a line for each chapter.
"""

import json
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from tools import book

CHECKED = ("19_write_it", "20_find_the_fault")  # by the exercises themselves
TRAINS = re.compile(r"\b(pretrain|run_of)\(")


def solutions(cells: list[dict]) -> list[str]:
    """The code in a chapter's solutions that trains nothing."""
    found = []
    for cell in cells:
        folds = re.findall(r"<summary>Solution</summary>(.*?)</details>", source(cell), re.DOTALL)
        for fold in folds:
            found += re.findall(r"```python\n(.*?)```", fold, re.DOTALL)
    return [code for code in found if not TRAINS.search(code)]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def main() -> None:
    matplotlib.use("Agg")
    for path in book.chapters():
        if path.stem not in CHECKED:
            run(path)


def run(path: Path) -> None:
    """Raises where a cell or a solution does."""
    cells = json.loads(path.read_bytes())["cells"]
    codes = solutions(cells)
    if not codes:
        return
    names: dict = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile(source(cell), path.stem, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names["profile"] = "quick"
    for code in codes:
        exec(compile(code, f"{path.stem}, a solution", "exec"), names)
    plt.close("all")
    print(f"\n{path.stem}: {len(codes)} solutions", flush=True)


if __name__ == "__main__":
    main()
