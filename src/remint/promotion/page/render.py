"""A story in, one HTML page out: pictures and style inside it, nothing fetched, no script. Pure: equal stories, equal pages.

Whatever comes from outside (names of columns and classes, reasons, settings) is escaped.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from remint.promotion.page import lineage, pictures, sections
from remint.promotion.page.story import Story


def render(story: Story) -> str:
    """The page of one decision."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = {name: pictures.png(data) for name, data in story.pictures.items()}
    page = environment.get_template("page.html").render(
        story=story,
        version=story.challenger.version,
        champion=story.champion,
        verdict=sections.verdict(story),
        metrics=sections.metrics(story),
        samples=sections.samples(story),
        nearest=sections.nearest(story),
        failures=sections.failures(story),
        by_class=sections.by_class(story),
        data=sections.data(story),
        lineage=lineage.view(story),
        pictures=shown,
    )
    return page.lstrip()
