"""Render a story as one HTML page. Pictures and style are inside it; it has no script and fetches nothing.

Pure: equal stories give equal pages. All text from outside (names of columns and classes, reasons, settings) is escaped.
"""

from __future__ import annotations

from pathlib import Path

from remint.promotion.page import lineage, pictures, sections
from remint.promotion.page.story import Story
from remint.runtime.templates import environment


def render(story: Story) -> str:
    """Return the page of one decision."""
    shown = {name: pictures.png(data) for name, data in story.pictures.items()}
    page = (
        environment(Path(__file__).parent)
        .get_template("page.html")
        .render(
            story=story,
            version=story.challenger.version,
            champion=story.champion,
            verdict=sections.verdict(story),
            metrics=sections.metrics(story),
            samples=sections.samples(story),
            nearest=sections.nearest(story),
            failures=sections.failures(story),
            by_class=sections.by_class(story),
            representation=sections.representation(story),
            data=sections.data(story),
            lineage=lineage.view(story),
            pictures=shown,
        )
    )
    return page.lstrip()
