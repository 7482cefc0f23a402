"""Self-contained pages from the templates in `templates/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoder.report.tables import describe_ridge, format_interval, format_probability


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page from a template in `templates/`; what comes from data is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"interval": format_interval, "probability": format_probability, "ridge": describe_ridge}
    return environment.get_template(template).render(context)
