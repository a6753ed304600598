"""Chromium, opened without a network: it prints the PDF, and the tests look at the site in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lib import InputError, needed

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
PATIENCE = 180_000  # milliseconds: a busy machine is no fault of the page
OFFLINE = ("file:", "data:", "blob:")


def found() -> str | None:
    """The path of a Chromium: named by CHROMIUM, on the PATH, or playwright's own; else None."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    for name in NAMES:
        on_path = shutil.which(name)
        if on_path:
            return on_path
    if find_spec("playwright") is None:
        return None
    with _playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


def required() -> str:
    """The path of a Chromium that playwright can drive.

    Raises InputError where it or playwright is missing.
    """
    needed("playwright", "test")
    program = found()
    if not program:
        raise InputError(
            "this needs Chromium and found none: install your system's chromium package, run "
            "playwright install chromium, or name one in the variable CHROMIUM"
        )
    return program


@contextmanager
def opened(asked: list[str] | None = None) -> Iterator[Any]:
    """A playwright browser context that gets files and nothing else.

    asked: gets what a page asks a network for.

    Raises InputError where playwright or Chromium is missing.
    """
    program = required()

    def is_online(url: str) -> bool:
        return not url.startswith(OFFLINE)

    def refuse(route: Any) -> None:
        if asked is not None:
            asked.append(route.request.url)
        route.abort()

    with _playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            context = browser.new_context()
            context.set_default_timeout(PATIENCE)
            context.route(is_online, refuse)
            yield context
        finally:
            browser.close()


def _playwright() -> Any:
    return needed("playwright.sync_api", "test").sync_playwright()
