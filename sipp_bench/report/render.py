"""Templates in, text out: HTML with every value escaped, and Markdown with every value made plain."""

import html
import re
from collections.abc import Mapping
from typing import Any

import jinja2

PAGES = {
    # file: what the navigation and the heading call it
    "index.html": "Overview",
    "accuracy.html": "Accuracy",
    "theory.html": "Theory",
    "beyond.html": "Beyond accuracy",
    "layers.html": "Layers",
    "speed.html": "Speed",
    "explorer.html": "Explorer",
    "provenance.html": "Provenance",
}


def render_page(file: str, context: Mapping[str, Any]) -> str:
    """One page of the site, the template of its name."""
    template = _environment(autoescape=True).get_template(f"{file}.jinja")
    return template.render(context, page=file, pages=PAGES)


def render_markdown(context: Mapping[str, Any]) -> str:
    """report.md: the whole report but the explorer."""
    environment = _environment(autoescape=False)
    environment.filters["md"] = _escape_markdown
    return environment.get_template("report.md.jinja").render(context)


def _environment(autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("sipp_bench.report"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _escape_markdown(text: Any) -> str:
    """Text as text: no HTML, no table column, no link and no emphasis of its own."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")
