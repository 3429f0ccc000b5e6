"""The report page: its content; foreign text is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remint.evaluation.evidence import Evidence
from remint.promotion import gate
from remint.promotion.decision import Decision
from remint.promotion.page import bars, lineage, pictures, sections, since, words
from remint.promotion.page.render import render
from remint.promotion.page.story import Side, Story
from remint.records import Change, Column, DataSpec, Drift, EvaluationReport, Leakage, MetricValue, TrainedModel, canonical
from remint.settings.judging import Bound, Improve, PromotionSettings
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion, VersionTags
from tests.support.browser import needs_chromium, render_page

HOSTILE = "<script>alert('x')</script>\"><img src=http://example.org/x onerror=alert(1)>{{ 7 * 7 }}"
IMAGES = DataSpec(shape=(1, 8, 8), levels=17, classes=2, class_names=("cat", HOSTILE))
TABLE = DataSpec(
    shape=(3,),
    columns=(
        Column(name=HOSTILE, mean=2.0, scale=0.5),
        Column(name="b", missing=True),
        Column(name="c", categories=("x", HOSTILE)),
    ),
)
RULES = PromotionSettings(
    require={"nll": Bound(max=3.0)}, improve=Improve(metric="nll", margin=0.05), never_worse={"fd_domain": 0.3}
)
N = 60


def value(name: str, values_N: np.ndarray[Any, Any], unit: str = "") -> MetricValue:
    half = 2.0 * values_N.std() / len(values_N) ** 0.5
    mean = float(values_N.mean())
    return MetricValue(name=name, value=mean, low=mean - half, high=mean + half, n=len(values_N), seed=0, unit=unit)


def rows(spec: DataSpec, count: int, seed: int) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    if not spec.is_table:
        return generator.integers(17, size=(count, 1, 8, 8), dtype=np.uint8)
    numbers = generator.normal(size=(count, 2)).astype(np.float32)
    return np.concatenate([numbers, generator.integers(2, size=(count, 1)).astype(np.float32)], axis=1)


def side(number: int, spec: DataSpec, shift: float, *, ended: str = "finished", likelihood: bool = True) -> Side:
    generator = np.random.default_rng(7)
    base_N = generator.normal(2.0, 0.3, size=N)
    own_N = base_N + shift + 0.02 * np.random.default_rng(number).normal(size=N)
    values = {"fd_domain": 4.0 + shift + 0.1 * np.random.default_rng(20 + number).normal(size=20)}
    values |= {"nll": own_N} if likelihood else {}
    measured = {name: value(name, v, "bits/dim" if name == "nll" else "") for name, v in values.items()}
    by_class = {"nll": {name: value("nll", own_N[place::2], "bits/dim") for place, name in enumerate(("cat", HOSTILE))}}
    version = ModelVersion(
        name="m",
        version=number,
        key=f"k{number}",
        run_id="r",
        weights_sha256="a" * 64,
        dataset="d",
        commit="c" * 40,
        dirty=False,
        created="2026-01-02T03:04:05+00:00",
        tags=VersionTags(recipe=canonical({"family": "flow", "model": {HOSTILE: HOSTILE, "steps": number}}), reason=HOSTILE),
    )
    report = EvaluationReport(
        pipeline="m",
        model_key=version.key,
        weights_sha256="a" * 64,
        dataset="d",
        metrics=measured,
        context={"factorised": value("factorised", base_N + 0.5, "bits/dim"), "fd_domain_floor": value("f", np.ones(20))},
        by_class=by_class if likelihood else {},
        leakage=Leakage(checked=N, exact=0, near=0, tolerance="a pixel or two"),
    )
    place_N = np.argsort(-base_N)[:16]
    failed = {"metric": np.array("nll"), "place_N": place_N, "x_NX": rows(spec, 16, 3), "value_N": own_N[place_N]}
    failed |= {"y_N": np.arange(16) % 2} if spec.classes else {}
    if not likelihood:
        failed |= {"metric": np.array("uncovered"), "all_M": own_N}
    trained = TrainedModel(
        pipeline="m",
        dataset="d",
        spec=spec,
        recipe={"family": "flow"},
        weights_sha256="a" * 64,
        steps=90,
        best_step=60,
        ended=ended,  # type: ignore[arg-type]
        reason="" if ended == "finished" else HOSTILE,
        validation=None,
        world_size=1,
        fingerprint={},
    )
    near = {"near_NX": rows(spec, 16, 5), "distance_N": np.linspace(0.0, 3.0, 16), "real_M": np.linspace(1.0, 2.0, 60)}
    return Side(version, report, values, trained, rows(spec, 64, number), near, failed)


def story(spec: DataSpec = IMAGES, shift: float = -0.4, champion: bool = True, **how: Any) -> Story:
    ours, theirs = side(2, spec, shift, **how), side(1, spec, 0.0, likelihood=how.get("likelihood", True))
    sides = [Evidence(one.report, one.values) for one in (ours, theirs)]
    wrong = f"training {ours.trained.ended}: {HOSTILE}" if ours.trained.went_wrong else None
    held = (sides[1], 1) if champion else (None, None)
    decision = gate.decide("m", sides[0], 2, *held, RULES, training_failure=wrong)
    row = LedgerRow(
        model="m",
        sequence=2,
        action=decision.verdict,
        champion_before=1,
        champion_after=2,
        version=2,
        who=HOSTILE,
        why=HOSTILE,
        evidence="e",
        at="2026-01-02T03:04:05+00:00",
        previous="p" * 64,
        hash="h" * 64,
    )
    png = io.BytesIO()
    Image.new("RGB", (40, 20), "white").save(png, "PNG")
    drawn = dict.fromkeys(("curves", "likelihood", "columns"), png.getvalue())
    both = {"champion": theirs, "champion_version": theirs.version} if champion else {}
    return Story(decision, RULES, row, spec, rows(spec, 64, 0), ours, **both, pictures=drawn)


STORIES = {
    "images": lambda: story(),
    "table": lambda: story(TABLE),
    "first": lambda: story(champion=False),
    "worse": lambda: story(shift=0.8),
    "collapsed": lambda: story(ended="collapsed"),
    "no likelihood": lambda: story(likelihood=False),
    "champion not measured": lambda: replace(story(), champion=None),
    "cannot sample": lambda: replace(
        story(), challenger=replace(side(2, IMAGES, -0.4), samples_NX=None, nearest=None, failures=None)
    ),
}


class Page(HTMLParser):
    """Parser that collects addresses and the text below each heading, and checks that tags are closed in order."""

    EMPTY = frozenset({"meta", "link", "img", "br", "line", "path", "circle", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: dict[str, str] = {}
        self.heading = ""
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")], "no handler"
        self.addresses += [text or "" for name, text in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "h2":
            self.heading = ""

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "body" not in self.open:
            return
        if self.open and self.open[-1] == "h2":
            self.heading += data
        self.words[self.heading] = self.words.get(self.heading, "") + data


@pytest.mark.parametrize("make", STORIES.values(), ids=STORIES.keys())
def test_a_page_is_complete_fetches_nothing_and_escapes_foreign_text(make: Any) -> None:
    html = render(make())
    page = Page(html)
    assert all(address.startswith("data:") for address in page.addresses), "nothing is fetched"
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import", html)
    assert "{{ 7 * 7 }}" in page.words["Lineage"], "what is hostile is text"
    assert html == render(make()), "equal stories, equal pages"


def test_the_sections_are_in_a_fixed_order() -> None:
    found = list(Page(render(story())).words)[1:]
    assert found == [
        "Champion beside challenger",
        "Training",
        "Likelihood of each held-out example",
        "Nearest training examples",
        "Failures",
        "By class",
        "Data",
        "Lineage",
    ]


def test_the_verdict_and_every_rule_with_both_numbers_come_first() -> None:
    told = story()
    text = Page(render(told)).words[""]
    assert told.decision.verdict == "promoted" and "Promoted" in text and "m/2 goes into production." in text
    assert all(reason in text for reason in told.decision.reasons)
    ours, theirs = (one.report.metrics["nll"] for one in (told.challenger, told.champion) if one)
    places = words.decimals(ours, theirs)
    for number in (ours.value, theirs.value):
        assert text.count(f"{number:.{places}f}") >= 2, "required and improve both show it"
    assert "shown better by more than 0.05" in text and "at most 3" in text and "shown worse by at most 0.3" in text
    assert text.count("✓ yes") == len(told.decision.rules) and "✗ no" not in text


def test_a_refusal_names_the_rule_that_failed() -> None:
    told = story(shift=0.8)
    text = Page(render(told)).words[""]
    assert told.decision.verdict == "refused" and "Refused" in text and "does not go into production" in text
    assert "✗ no" in text and "shown to be worse" in text


def test_a_failed_training_is_reported_at_the_top() -> None:
    text = Page(render(story(ended="collapsed"))).words[""]
    assert text.index("The training collapsed") < text.index("Refused")


def test_what_happened_since_is_written_into_the_page_and_nothing_else_changes(tmp_path: Path) -> None:
    told, page = story(), tmp_path / "report.html"
    page.write_text(before := render(told))
    since.refresh(page, [told.row], [])
    assert page.read_text() == before, "nothing happened"
    later = told.row.model_copy(
        update={"sequence": told.row.sequence + 1, "action": "rejected", "who": "ada", "why": "<b>blurs</b>"}
    )
    for _ in range(2):
        since.refresh(page, [told.row, later], [])
    after = page.read_text()
    assert "ada: <b>rejected</b><br>&lt;b&gt;blurs&lt;/b&gt;" in after and after.count("Since this decision") == 1
    since.refresh(page, [told.row], [])
    assert page.read_text() == before
    page.write_text("a page of an older remint")
    since.refresh(page, [told.row, later], [])
    since.refresh(tmp_path / "none.html", [told.row, later], [])
    assert page.read_text() == "a page of an older remint" and not (tmp_path / "none.html").exists()


def test_a_first_version_has_one_column() -> None:
    html = render(story(champion=False))
    text = "".join(Page(html).words.values())
    assert "no champion: this is the first one" in text and "m/1" not in text
    assert html.count('alt="nearest training image"') == 16
    assert render(story()).count('alt="nearest training image"') == 32


def test_a_champion_that_could_not_be_measured_is_named() -> None:
    assert "The champion m/1 could not be measured on this data" in render(replace(story(), champion=None))


def test_linear_probes_are_shown_where_they_were_measured() -> None:
    """Beside the champion's, unless its report is from before."""

    def probed(one: Side, shift: float) -> Side:
        places = {"probe_latent": 0.9, "probe_pca": 0.8, "probe_raw": 0.95}
        found = {
            name: value(name, shift + at + 0.01 * np.sin(np.arange(N))).model_copy(
                update={"fingerprint": {"numbers": 16, "trained_on": 1_000}}
            )
            for name, at in places.items()
        }
        return replace(one, report=one.report.model_copy(update={"context": {**one.report.context, **found}}))

    told = story()
    assert told.champion is not None and "Representation" not in Page(render(told)).words
    ours = replace(told, challenger=probed(told.challenger, 0.02))
    text = Page(render(ours)).words["Representation"]
    assert "16 latents" in text and "1000 training examples" in text and "the share of 60 held-out examples" in text
    assert all(f"{number:.3f}" in text for number in (0.920, 0.820, 0.970)) and "0.9003" not in text
    both = Page(render(replace(ours, champion=probed(told.champion, 0.0)))).words["Representation"]
    assert "0.9203" in both and "0.9003" in both
    assert text.index("latents") < text.index("principal components") < text.index("values", text.index("principal components"))


def test_failures_show_the_value_of_the_champion_for_the_same_example() -> None:
    told = story()
    found = sections.failures(told)
    assert found is not None and found["rival"] and told.challenger.failures is not None and told.champion is not None
    for one, place in zip(found["examples"], told.challenger.failures["place_N"], strict=True):
        assert one["challenger"] == f"{told.challenger.values['nll'][place]:.2f}"
        assert one["champion"] == f"{told.champion.values['nll'][place]:.2f}" and not one["worse"]


def test_a_failure_is_compared_with_the_champion_by_its_row_among_the_judged_examples() -> None:
    """Values are of some held-out examples: an example's place in the split is not its row among the values."""
    told = story()
    failed = told.challenger.failures
    assert failed is not None and told.champion is not None
    moved = {**failed, "row_N": failed["place_N"], "place_N": failed["place_N"] + 5_000}
    found = sections.failures(replace(told, challenger=replace(told.challenger, failures=moved)))
    assert found is not None
    assert [one["place"] for one in found["examples"]] == (failed["place_N"] + 5_000).tolist()
    values = told.champion.values["nll"][failed["place_N"]]
    assert [one["champion"] for one in found["examples"]] == [f"{value:.2f}" for value in values]


def test_rows_are_shown_in_original_units() -> None:
    found = sections.nearest(story(TABLE))[0]
    sample_ND = side(2, TABLE, 0.0).samples_NX
    assert sample_ND is not None
    assert found["rows"][0]["sample"][0] == f"{sample_ND[0, 0] * 0.5 + 2.0:.4g}".replace("-", "−")
    assert {row["sample"][2] for row in found["rows"]} <= {"x", HOSTILE}
    assert found["copies"] == 1 and found["closer"] == 6, "distances 0, 0.2, .. 1.0 are below 1.05, the nearest 5% of real ones"


def test_drift_and_leakage_are_shown() -> None:
    change = Change(of=HOSTILE, statistic="mean", before=1.0, after=2.5, change=1.5, low=1.2, high=1.8, p=0.001)
    drift = Drift(former="d0", present="d", comparable=True, summary="one thing changed", before={"train": 80}, after={"train": 100}, kept=75, added=25, removed=5, tested=9, changed=(change,))  # fmt: skip
    text = Page(render(replace(story(), drift=drift))).words["Data"]
    assert "75 training examples are unchanged, 25 were added and 5 were removed" in text and "1 of 9 statistics changed" in text
    assert "one thing changed" in text and "mean of <script>" in text and "[+1.20, +1.80]" in text
    assert "None of 60 held-out examples in the training split (0.00%)" in text
    assert "None of 60 held-out examples in the training split of the champion" in text
    assert "the champion was trained on the same version" in Page(render(story())).words["Data"]


def test_decisions_of_the_import_are_shown() -> None:
    assert "How the source is read" not in Page(render(story())).words["Data"]
    text = Page(render(replace(story(TABLE), read_as={HOSTILE: "left out: the index", "b": HOSTILE}))).words["Data"]
    assert "How the source is read" in text and "left out: the index" in text and text.count("<script>") == 2


def test_changes_since_the_champion_are_marked() -> None:
    view = lineage.view(story())
    changed = {row["key"] for row in view["settings"] if row["changed"]}
    assert changed == {"model.steps"} and view["ledger"]["hash"] == "h" * 64


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (1.878, 1.932), (-95.0, 3.0), (1e-5, 3e-5), (120.0, 4000.0), (2.0, 2.0)])
def test_ticks_are_round_and_within_the_scale(low: float, high: float) -> None:
    scale = bars.Scale.over([low, high], 340)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8 and scale.low <= min(ticks) and max(ticks) <= scale.high
    step = ticks[1] - ticks[0]
    assert float(f"{step:.0e}") == pytest.approx(step) and f"{step:.0e}"[0] in "125"
    assert scale(scale.low) == 10 and scale(scale.high) == 330 and scale((scale.low + scale.high) / 2) == 170


def test_intervals_are_drawn_at_their_numbers() -> None:
    ours = MetricValue(name="nll", value=2.0, low=1.0, high=3.0, n=9, seed=0)
    theirs = ours.model_copy(update={"value": 4.0, "low": 3.5, "high": 5.0})
    drawn = str(bars.intervals([("challenger", ours), ("champion", theirs)], [("floor", 2.5), ("far", 900.0)]))
    scale = bars.Scale.over([1.0, 3.0, 3.5, 5.0, 2.5], 340)
    assert f'x1="{scale(1.0)}" x2="{scale(3.0)}"' in drawn and f'cx="{scale(2.0)}"' in drawn
    assert f'x1="{scale(3.5)}" x2="{scale(5.0)}"' in drawn and f'<line class="mark" x1="{scale(2.5)}"' in drawn
    assert "far 900 →" in drawn, "what is far off is pointed to, and the intervals are still seen"


def test_a_difference_is_drawn_with_zero_and_the_margin() -> None:
    drawn = str(bars.difference((0.2, 0.1, 0.3), 0.05))
    scale = bars.Scale.over([-0.3, 0.3], 250)
    assert f'<line class="zero" x1="{scale(0.0)}"' in drawn and f'<line class="mark" x1="{scale(0.05)}"' in drawn
    assert f'x1="{scale(0.1)}" x2="{scale(0.3)}"' in drawn


@pytest.mark.parametrize(
    "low, high, places",
    [(1.854, 1.902, 3), (29.28, 29.84, 2), (5.386, 9.866, 1), (125.256252, 125.256253, 2), (0.0011, 0.0013, 5), (2.0, 2.0, 3)],
)
def test_numbers_have_the_digits_that_their_interval_justifies(low: float, high: float, places: int) -> None:
    middle = MetricValue(name="m", value=(low + high) / 2, low=low, high=high, n=9, seed=0)
    assert words.decimals(middle, None) == places


def test_a_contact_sheet_contains_every_pixel() -> None:
    x_NCHW = rows(IMAGES, 10, 1)
    image = Image.open(io.BytesIO(base64.b64decode(pictures.sheet(x_NCHW, 17, 4).split(",")[1])))
    factor = 640 // 37
    assert image.size == (37 * factor, 28 * factor)
    small = np.asarray(image)[factor // 2 :: factor, factor // 2 :: factor]
    np.testing.assert_array_equal(small[10:18, 19:27], np.round(x_NCHW[6, 0] * 255.0 / 16))


def test_a_page_of_large_pictures_stays_small() -> None:
    address = pictures.sheet(np.zeros((64, 3, 256, 256), dtype=np.uint8), 256, 8)
    assert Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).width == pictures.WIDEST
    assert Image.open(
        io.BytesIO(base64.b64decode(pictures.single(np.zeros((4, 300, 200), np.uint8), 256).split(",")[1]))
    ).size == (
        85,
        128,
    )


def test_a_report_folder_is_read_as_one_side_of_the_page(tmp_path: Path) -> None:
    one = side(2, IMAGES, 0.0)
    Evidence(one.report, one.values).save(tmp_path)
    one.trained.write(tmp_path / "training.json")
    np.savez(tmp_path / "failures.npz", **one.failures)  # type: ignore[arg-type]
    read = Side.read(one.version, tmp_path)
    assert read.report.metrics == one.report.metrics and read.samples_NX is None and read.nearest is None
    assert read.failures is not None and str(read.failures["metric"]) == "nll"
    np.testing.assert_array_equal(read.values["nll"], one.values["nll"])


def test_every_rule_of_the_gate_has_a_name() -> None:
    from typing import get_args

    from remint.promotion.decision import RuleResult, Verdict

    assert set(words.RULES) == set(get_args(RuleResult.model_fields["rule"].annotation))
    assert set(words.VERDICTS) == set(get_args(Verdict)) and Decision.model_fields["verdict"].annotation == Verdict


@needs_chromium
@pytest.mark.parametrize("name", ["images", "table"])
def test_a_browser_renders_the_page(tmp_path: Path, name: str) -> None:
    (tmp_path / "report.html").write_text(render(STORIES[name]()))
    seen = render_page(tmp_path / "report.html", tmp_path)
    assert seen.errors == [] and seen.fetched == 0 and seen.broken == 0
    assert seen.images == (3 + 64 + 16 + 2 if name == "images" else 3)
    assert seen.width <= 1280, "nothing is cut at 1280 pixels"
    assert np.asarray(Image.open(seen.screenshot).convert("L"), dtype=float).std() > 10, "the page is blank"
