"""Data drift: change of the training data since a model was trained, in rows, in columns or images, and in features.

    tables    mean and spread of numeric columns, shares of categorical ones, share of missing values of both
    images    mean and spread of brightness, of contrast, and of each channel's brightness if there are several
    labels    shares of the classes
    features  Frechet distance between the former and the present training split, in today's extractor

Every example is counted once (evaluation/contrast.py); of more than MAX_TESTED a random share is tested. The p-values are
corrected for the number of tests. The distance of finite sets is above 0 even without drift. Its floor is the mean distance
when the same examples are shuffled between kept, added and removed, with the limits of 95% of the shuffles. The interval of
the distance is a jackknife's over ten groups of the examples (Efron & Tibshirani, An introduction to the bootstrap, 1993).

drift.json    records.Drift
drift.png     images: the mean before and after, and the difference; tables: histograms of the columns before and after

Shapes: N examples, X the axes of one, D features or columns, G groups, M shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from remint.data.arrays import Dataset, Split
from remint.evaluation import charts, contrast
from remint.evaluation.contrast import ContrastTest, Groups
from remint.evaluation.frechet import Moments, frechet_distance
from remint.evaluation.matching import match_examples
from remint.records import Change, DataSpec, Drift, MetricValue

LEVEL = 0.05  # significance level of a reported change, over all statistics together
MAX_TESTED = 1_000_000  # examples of the tests, about: from more, an equal share of the kept, added and removed ones
MAX_EXAMPLES = 10_000  # maximum number of examples whose features are computed
GROUPS, SHUFFLES = 10, 99  # of the jackknife, and for the floor
MAX_NAMED = 3  # changes in the summary
BLOCK = 1024  # images at a time

Array = np.ndarray[Any, Any]
Extract = Callable[[Array], Array]  # examples x_NX to features f_ND, float64
Statistic = Literal["mean", "spread", "missing", "share"]


def measure_drift(former: Dataset, present: Dataset, extract: Extract | None, extractor_sha256: str) -> Drift:
    """Return the drift from ``former`` to ``present``. Datasets of different schemas are reported as not comparable.

    ``extract``: None if no metric uses the dataset's own features; the drift then has no distance.
    """
    a, b = former.spec, present.spec
    start = Drift(
        former=former.version.digest,
        present=present.version.digest,
        comparable=False,
        summary="drift since the champion was trained is not comparable: "
        f"it was trained on {a.text()}, and today's data have another schema: {b.text()}",
        before=former.version.counts,
        after=present.version.counts,
    )
    if not a.fits(b, conditional=False):
        return start
    places = match_examples(former.train, present.train)
    changes = statistics(former, present, _sample(places, MAX_TESTED, np.random.default_rng(1)))
    changed = tuple(sorted((c for c in changes if c.p < LEVEL), key=lambda change: -abs(change.change)))
    fingerprint = {"extractor": extractor_sha256, "former": former.version.digest, "present": present.version.digest}
    distance, floor = _distance(former.train, present.train, places, extract, fingerprint)
    drift = start.model_copy(
        update={
            "comparable": True,
            "kept": len(places.kept),
            "added": len(places.added),
            "removed": len(places.removed),
            "tested": len(changes),
            "p": min((change.p for change in changes), default=None),
            "changed": changed,
            "distance": distance,
            "floor": floor,
        }
    )
    resplit = former.version.split != present.version.split
    return drift.model_copy(update={"summary": _summary(drift, resplit)})


def write(drift: Drift, former: Dataset, present: Dataset, out: Path) -> None:
    """Write drift.json, and drift.png if the two datasets are comparable."""
    drift.write(out / "drift.json")
    if not drift.comparable:
        return
    if present.spec.is_table:
        before, after = (split.x_NX[:: 1 + len(split) // MAX_TESTED] for split in (former.train, present.train))
        charts.columns_before_and_after(out / "drift.png", before, after, present.spec.columns, drift)
    else:
        before, after = (_mean_image(split) / (present.spec.levels - 1) for split in (former.train, present.train))
        charts.images_before_and_after(out / "drift.png", before, after, drift)


def statistics(former: Dataset, present: Dataset, places: Groups) -> list[Change]:
    """Return every comparable statistic of two training splits of one schema, with p-values corrected for all of them (Holm)."""
    tests = list(_tests(former, present, places))
    corrected = contrast.holm([change.p for change in tests])
    return [change.model_copy(update={"p": p}) for change, p in zip(tests, corrected, strict=True)]


def _tests(former: Dataset, present: Dataset, places: Groups) -> Iterator[Change]:
    """Yield every statistic that is comparable with its former value, with its uncorrected p-value."""
    spec = present.spec
    if spec.is_table:
        yield from _table_tests(former.train, present.train, places, spec)
    else:
        kept, added, removed = (
            _image_statistics(split, place_N, spec)
            for split, place_N in zip((present.train, present.train, former.train), places.all, strict=True)
        )
        for name in kept:
            yield from _numeric(name, Groups(kept[name], added[name], removed[name]))
    same_classes = (former.spec.classes, former.spec.class_names) == (spec.classes, spec.class_names)
    if spec.classes and same_classes and former.train.y_N is not None and present.train.y_N is not None:
        labels = Groups(present.train.y_N[places.kept], present.train.y_N[places.added], former.train.y_N[places.removed])
        yield from _categorical("label", labels, list(spec.class_names) or [str(y) for y in range(spec.classes)])


def _table_tests(former: Split, present: Split, places: Groups, spec: DataSpec) -> Iterator[Change]:
    for place, column in enumerate(spec.columns):
        before_N, after_N = former.x_NX[:, place], present.x_NX[:, place]
        groups = Groups(after_N[places.kept], after_N[places.added], before_N[places.removed])
        observed = groups.map(lambda value_N: value_N[np.isfinite(value_N)].astype(np.float64))
        if column.numeric:
            yield from _numeric(column.name, observed, column.mean, column.scale)
        else:
            yield from _categorical(column.name, observed, list(column.categories))
        missing = contrast.shares(groups.map(np.isnan), 2)
        if missing is not None:
            yield _share_change(column.name, "missing", "", missing, 1)


def _image_statistics(split: Split, place_N: Array, spec: DataSpec) -> dict[str, Array]:
    """Return mean, standard deviation and channel means of these images, as shares of the range of values."""
    rows: list[Array] = [np.empty((0, 2 + spec.image[0]))]
    for at in range(0, len(place_N), BLOCK):
        x_BX = split.x_NX[place_N[at : at + BLOCK]]
        x_BCP = x_BX.reshape(-1, spec.image[0], spec.dims // spec.image[0]) / (spec.levels - 1.0)
        rows.append(np.column_stack([x_BCP.mean((1, 2)), x_BCP.std((1, 2)), x_BCP.mean(2)]))
    names = ["brightness", "contrast", *(f"channel {c}" for c in range(spec.image[0]))]
    shown = len(names) if spec.image[0] > 1 else 2  # the only channel of a grey image has the same mean as the image
    return dict(zip(names[:shown], np.concatenate(rows).T, strict=False))


def _mean_image(split: Split) -> Array:
    total = sum(split.x_NX[at : at + BLOCK].sum(axis=0, dtype=np.float64) for at in range(0, len(split), BLOCK))
    mean_CHW: Array = np.asarray(total) / len(split)
    return mean_CHW


def _numeric(name: str, groups: Groups, offset: float = 0.0, scale: float = 1.0) -> Iterator[Change]:
    """Yield the changes of mean and spread of numbers, which are (original - offset) / scale."""
    moved, spread = contrast.mean(groups), contrast.spread(groups)
    if moved is not None:
        deviation = float(groups.former.std()) or 1.0
        limits = [limit / deviation for limit in (moved.after - moved.before, moved.low, moved.high)]
        yield _change(name, "mean", moved.before * scale + offset, moved.after * scale + offset, limits, moved)
    if spread is not None and spread.before > 0.0 and spread.after > 0.0:
        # Delta method: the error of a logarithm is the relative error.
        ratio, typical = float(np.log(spread.after / spread.before)), (spread.before * spread.after) ** 0.5
        half = (spread.high - spread.low) / 2.0 / typical
        yield _change(name, "spread", spread.before * scale, spread.after * scale, [ratio, ratio - half, ratio + half], spread)


def _change(name: str, statistic: Statistic, before: float, after: float, change: list[float], tested: ContrastTest) -> Change:
    value, low, high = change
    return Change(of=name, statistic=statistic, before=before, after=after, change=value, low=low, high=high, p=tested.p)


def _categorical(name: str, groups: Groups, categories: list[str]) -> Iterator[Change]:
    found = contrast.shares(groups, len(categories))
    if found is not None:
        most = int(np.abs(found.h_C).argmax())
        yield _share_change(name, "share", categories[most], found, most)


def _share_change(name: str, statistic: Statistic, category: str, found: contrast.Shares, place: int) -> Change:
    h = float(found.h_C[place])
    return Change(
        of=name,
        statistic=statistic,
        category=category,
        before=float(found.before_C[place]),
        after=float(found.after_C[place]),
        change=h,
        low=h - found.half,
        high=h + found.half,
        p=found.p,
    )


def _distance(
    former: Split, present: Split, places: Groups, extract: Extract | None, fingerprint: dict[str, Any]
) -> tuple[MetricValue | None, MetricValue | None]:
    """Return the Frechet distance of the two splits and its floor; None if they are equal, too small, or without features."""
    generator = np.random.default_rng(0)
    chosen = _sample(places, MAX_EXAMPLES, generator)
    k, a, r = map(len, chosen.all)
    if extract is None or a + r == 0 or min(k + a, k + r) < 2:
        return None, None
    x_NX = np.concatenate([present.x_NX[chosen.kept], present.x_NX[chosen.added], former.x_NX[chosen.removed]])
    f_ND = extract(x_NX)

    def between(order_N: Array) -> float:
        kept, added, removed = f_ND[order_N[:k]], f_ND[order_N[k : k + a]], f_ND[order_N[k + a :]]
        return frechet_distance(Moments.of(np.concatenate([kept, removed])), Moments.of(np.concatenate([kept, added])))

    value = between(np.arange(k + a + r))
    error = _jackknife(f_ND, (k, a, r), generator)
    floor_M = np.array([between(generator.permutation(k + a + r)) for _ in range(SHUFFLES)])
    half = float(stdtrit(GROUPS - 1, 0.975)) * error
    low, high = (float(limit) for limit in np.quantile(floor_M, [0.025, 0.975]))
    n = min(k + a, k + r)
    how = {**fingerprint, "examples": [k, a, r]}
    return (
        _value("fd_domain", value, max(0.0, value - half), value + half, n, {**how, "interval": f"jackknife of {GROUPS} groups"}),
        _value("fd_domain_floor", float(floor_M.mean()), low, high, n, {**how, "interval": f"95% of {SHUFFLES} shuffles"}),
    )


def _sample(places: Groups, most: int, generator: np.random.Generator) -> Groups:
    """Return an equal random share of each group, of about ``most`` examples together; all if they are no more."""
    share = min(1.0, most / sum(map(len, places.all)))
    return places.map(lambda place_N: _some(place_N, share, generator))


def _some(place_N: Array, share: float, generator: np.random.Generator) -> Array:
    """Return a random share of the indices, in ascending order: at least one if there is any."""
    count = max(min(1, len(place_N)), int(share * len(place_N)))
    return np.sort(generator.permutation(place_N)[:count])


def _value(name: str, value: float, low: float, high: float, n: int, fingerprint: dict[str, Any]) -> MetricValue:
    return MetricValue(name=name, value=value, low=low, high=high, n=n, seed=0, fingerprint=fingerprint)


def _jackknife(f_ND: Array, sizes: tuple[int, int, int], generator: np.random.Generator) -> float:
    """Return the standard error of the distance: each tenth of the kept, added and removed examples is left out in turn."""
    group_N = np.concatenate([generator.permutation(size) % GROUPS for size in sizes])
    kind_N = np.repeat(range(3), sizes)
    parts = {
        (kind, group): Moments.of(f_ND[(kind_N == kind) & (group_N == group)])
        for kind in range(3)
        for group in range(GROUPS)
        if ((kind_N == kind) & (group_N == group)).any()
    }

    def without(left_out: int, kinds: tuple[int, ...]) -> Moments | None:
        rest = [moments for (kind, group), moments in parts.items() if kind in kinds and group != left_out]
        return reduce(add, rest) if rest else None

    distances = []
    for group in range(GROUPS):
        former, present = without(group, (0, 2)), without(group, (0, 1))
        if former is None or present is None or min(former.count, present.count) < 2:
            continue
        distances.append(frechet_distance(former, present))
    left = np.array(distances)
    return float(((GROUPS - 1) / GROUPS * ((left - left.mean()) ** 2).sum()) ** 0.5) if len(left) else 0.0


def _summary(drift: Drift, resplit: bool) -> str:
    """Summarise the drift in one sentence."""
    rows = f"{drift.added:,} training examples were added and {drift.removed:,} removed, {drift.kept:,} stayed"
    if not drift.added + drift.removed:
        return f"the {drift.kept:,} training examples did not change"
    if resplit:
        rows += " (the settings of the split changed, so examples moved between splits)"
    named = "; ".join(change.text() for change in drift.changed[:MAX_NAMED])
    more = f" and {len(drift.changed) - MAX_NAMED} more" if len(drift.changed) > MAX_NAMED else ""
    what = f"{len(drift.changed)} changed: {named}{more}" if drift.changed else "none changed beyond chance"
    words = f"{rows}; of {drift.tested} statistics {what}"
    if drift.distance is None or drift.floor is None:
        return words
    place = "above" if drift.distance.value > drift.floor.high else "within"
    limits = f"{drift.floor.low:.3g} to {drift.floor.high:.3g}"
    return f"{words}; Frechet distance {drift.distance.value:.3g}, {place} the range of shuffled examples ({limits})"
