"""Find Chromium and open it without a network: it prints the PDF, and the tests look at the site in
it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib import InputError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# No sandbox, since containers have none to give; what is opened is our own site. The rest: no calls
# home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def found() -> str | None:
    """The path of a Chromium: named by CHROMIUM, on the PATH, or playwright's own. None where there
    is none."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    if on_path:
        return on_path
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


def required() -> str:
    """The path of a Chromium that playwright can drive. Raises InputError where it or playwright is
    missing."""
    try:
        import playwright  # noqa: F401
    except ImportError as error:
        raise InputError(
            "this needs playwright; install it with: pip install -e '.[test]'"
        ) from error
    program = found()
    if not program:
        raise InputError(
            "this needs Chromium and found none: install your system's chromium package, run "
            "playwright install chromium, or name one in the variable CHROMIUM"
        )
    return program


@contextmanager
def opened(asked: list[str] | None = None) -> Iterator:
    """A playwright browser context that gets files and nothing else; what it asks a network for is
    put into asked.

    Raises InputError where playwright or Chromium is missing.
    """
    program = required()
    from playwright.sync_api import sync_playwright

    def refuse(route) -> None:
        if asked is not None:
            asked.append(route.request.url)
        route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            context = browser.new_context()
            context.set_default_timeout(180_000)  # a busy machine is no fault of the page
            context.route(lambda url: not url.startswith(("file:", "data:", "blob:")), refuse)
            yield context
        finally:
            browser.close()
