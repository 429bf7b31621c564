"""HTML pages from templates; every text in them is escaped, and they share ``style.css``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from lavit.runs.progress import clock


def render(template: Path, page: dict[str, Any]) -> str:
    """The HTML of a template with what it shows; a name that it needs and does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "clock": lambda seconds: "–" if seconds is None else clock(seconds)}
    return environment.get_template(template.name).render(page)


def number(value: float) -> str:
    """Three decimals below 10, one above, and whole numbers as they are."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
