"""The whole book as build/book.pdf: run and built as one page, printed by Chromium.

python -m tools.pdf [--profile quick]
"""

import argparse
import sys
from pathlib import Path

from lib import InputError
from tools import book, chromium

PDF = book.BOOK.built / "book.pdf"
# Solutions are opened; hidden code stays hidden, as its heading says. A light page, whatever the
# theme was.
READY = """async () => {
  for (const details of document.querySelectorAll("details:not(.hide)")) details.open = true;
  document.documentElement.dataset.theme = "light";
  for (const image of document.images) { image.loading = "eager"; await image.decode(); }
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;
}"""


def write(page_file: Path, target: Path) -> None:
    """Print one HTML file to a PDF, with an outline and page numbers.

    Raises InputError where Chromium is missing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")

    with chromium.opened() as context:
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.evaluate(READY)
        page.pdf(
            path=partial,
            prefer_css_page_size=True,
            print_background=True,
            outline=True,
            tagged=True,
        )
    partial.replace(target)


def main(arguments: list[str] | None = None) -> int:
    """Turn an InputError into one line and exit status 2, as python -m lib does."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pdf", description="The whole book as build/book.pdf."
    )
    parser.add_argument(
        "--profile", default="quick", help="a file in book/profiles (default quick)"
    )
    args = parser.parse_args(arguments)

    try:
        chromium.required()
        book.run(args.profile)
        one_page = book.build(args.profile, builder="singlehtml").with_name("intro.html")
        write(one_page, PDF)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"open {PDF}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
