"""What follows from the repository's address in _config.yml: where GitHub Pages serves the site.

Cards for social networks and the 404 page need absolute links; every other link is relative.
"""

from typing import Any
from urllib.parse import urlsplit


def pages_url(repository: str) -> str:
    """The address of a repository's site on GitHub Pages.

    Raises ValueError where it is not https://HOST/OWNER/NAME.
    """
    owner, name = urlsplit(repository).path.strip("/").split("/")
    return f"https://{owner}.github.io/{name}/"


def _set(app: Any, config: Any) -> None:
    site = pages_url(config.html_theme_options["repository_url"])
    config.html_baseurl = site
    config.ogp_site_url = site
    config.notfound_urls_prefix = urlsplit(site).path


def setup(app: Any) -> dict:
    app.connect("config-inited", _set)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
