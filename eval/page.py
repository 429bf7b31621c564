"""HTML pages from the templates beside this file; every text in them is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from eval.figures import number
from lavit.runs.progress import clock


def render(template: str, page: dict[str, Any]) -> str:
    """The HTML of a template's name with what it shows; a name that it needs and does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "clock": lambda seconds: "–" if seconds is None else clock(seconds)}
    return environment.get_template(template).render(page)
