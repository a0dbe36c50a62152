"""Reports as HTML pages that need nothing else: no script, no font, no picture, no address.

The templates lie in pages/, with the one style sheet of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["COLOURS", "Markup", "render"]

COLOURS = ("put", "get", "range", "head", "list", "delete")
"""Of lines; named as the style sheet in pages/ has them, for light and dark."""

_PAGES = Path(__file__).with_name("pages")


def render(template: str, filters: dict[str, Callable[..., str]] | None = None, **content: object) -> str:
    """The text of a template. In a page all is escaped; what is HTML already, such as a chart, comes as `Markup`."""
    environment = Environment(
        loader=FileSystemLoader(_PAGES),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    page: str = environment.get_template(template).render(**content)
    return page
