"""Leakage: held-out examples in the training split are counted as an exhaustive search of pairs finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from remint.data.arrays import Split
from remint.evaluation import leakage, near_copies
from remint.records import Column, DataSpec, Leakage

IMAGES = DataSpec(shape=(3, 13, 10), levels=256)  # height and width are not multiples of 8
TABLE = DataSpec(
    shape=(5,),
    columns=(
        Column(name="a"),
        Column(name="b", mean=10.0, scale=2.0, missing=True),
        Column(name="colour", categories=("blue", "green", "red"), missing=True),
        Column(name="c"),
        Column(name="d"),
    ),
)
Array = np.ndarray[Any, Any]


def pictures(count: int, seed: int) -> Array:
    """Make smooth images: neighbouring pixels differ little, so that their box sums are close too."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(90, 130, size=(count, 1, 1, 1))
    return np.clip(base + generator.normal(scale=3.85, size=(count, *IMAGES.shape)), 0, 255).astype(np.uint8)


def rows(count: int, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    x_ND = generator.normal(size=(count, 5)).astype(np.float32)
    x_ND[:, 2] = generator.integers(3, size=count)
    x_ND[generator.random(count) < 0.2, 1] = np.nan
    x_ND[generator.random(count) < 0.1, 2] = np.nan
    return x_ND


def by_hand(held_NX: Array, train_MX: Array, limit: float) -> set[tuple[int, int]]:
    """Return every unequal pair whose root-mean-square difference is within the limit."""
    apart_NM = np.sqrt(
        ((held_NX.reshape(len(held_NX), 1, -1).astype(float) - train_MX.reshape(1, len(train_MX), -1)) ** 2).mean(2)
    )
    return {(int(n), int(m)) for n, m in zip(*np.nonzero((apart_NM <= limit) & (apart_NM > 0)), strict=True)}


@pytest.mark.parametrize("parts", [False, True])
def test_near_copies_of_images_equal_those_of_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch, parts: bool) -> None:
    """With all projections and digests in memory, or a part of either side at a time."""
    if parts:
        monkeypatch.setattr(near_copies, "REDUCED", 1)
        monkeypatch.setattr(leakage, "DIGESTS", 5)
    monkeypatch.setattr(near_copies, "BLOCK", 50)
    monkeypatch.setattr(near_copies, "WIDE", 70)
    monkeypatch.setattr(near_copies, "PAIRS", 30)
    train, held = pictures(400, 0), pictures(120, 1)
    held[7] = train[3]
    expected = by_hand(held, train, 0.02 * 255)
    near = {n for n, _ in expected} - {7}
    assert 10 < len(near) < 110, "the case is worth nothing where all are near or none"
    found = leakage.find(Split(held, None), Split(train, None), IMAGES)
    assert (found.leakage.checked, found.leakage.exact, found.leakage.near) == (120, 1, len(near))
    assert found.leakage.share == (1 + len(near)) / 120
    assert found.pairs[0] == (7, 3) and {n for n, _ in found.pairs[1:]} == near
    assert set(found.pairs[1:]) <= expected


def test_the_copies_by_chance_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DataSpec(shape=(2,), columns=(Column(name="x"), Column(name="y")))
    x_ND = np.random.default_rng(0).integers(40, size=(3_000, 2)).astype(np.float32) / 10
    held, train = Split(x_ND[:500], None), Split(x_ND[500:], None)
    whole = leakage.find(held, train, spec)
    assert 0 < whole.leakage.chance < 1 and whole.leakage.exact > 100
    monkeypatch.setattr(near_copies, "REDUCED", 1)
    monkeypatch.setattr(leakage, "DIGESTS", 50)
    assert leakage.find(held, train, spec) == whole


def test_rows_are_found_by_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "IDS", 100)
    generator = np.random.default_rng(0)
    id_M = generator.permutation(2_000).astype(np.uint64)
    id_N = generator.permutation(4_000)[:300].astype(np.uint64)
    blank = np.zeros((2_000, 2), np.float32)
    spec = DataSpec(shape=(2,), columns=(Column(name="x"), Column(name="y")))
    found = leakage.find(Split(blank[:300], None, id_N), Split(blank, None, id_M), spec)
    expected = [(n, int(np.flatnonzero(id_M == one)[0])) for n, one in enumerate(id_N) if one in id_M]
    assert list(found.pairs) == expected and found.leakage.exact == len(expected) > 100
    apart = leakage.find(Split(blank[:300], None, id_N + np.uint64(10_000)), Split(blank, None, id_M), spec)
    assert apart.pairs == () and apart.leakage.exact == 0


def test_an_example_just_beyond_the_tolerance_is_not_a_near_copy() -> None:
    train = np.full((1, *IMAGES.shape), 100, np.uint8)
    held = np.stack([train[0] + 5, train[0] + 6])  # 5 of 255 is 1.96%, 6 is 2.35%
    assert leakage.find(Split(held, None), Split(train, None), IMAGES).pairs == ((0, 0),)


def test_near_rows_must_have_equal_categories_and_missing_values() -> None:
    train, held = rows(600, 0), rows(200, 1)
    observed = {n: int(n) for n in range(600) if np.isfinite(train[n]).all()}
    first, second, third, fourth = list(observed)[:4]
    for place, source in enumerate((first, second, third, fourth)):
        held[place] = train[source]
    held[1, [0, 1, 3, 4]] += 0.01  # within 0.02
    held[2, 2] = (held[2, 2] + 1) % 3  # another category
    held[3, 1] = np.nan  # missing in this row only
    held[4], train[5] = (np.array([0.5, np.nan, 1.0, -0.0, 2.0], np.float32) for _ in range(2))
    train[5, 3] = 0.0
    found = leakage.find(Split(held, None), Split(train, None), TABLE)
    assert dict(found.pairs) == {0: first, 1: second, 4: 5}
    assert (found.leakage.exact, found.leakage.near) == (2, 1)


def test_rows_that_are_near_because_of_few_columns_are_not_leakage() -> None:
    spec = DataSpec(shape=(2,), columns=(Column(name="x"), Column(name="y")))
    generator = np.random.default_rng(0)
    train, held = (generator.normal(size=(count, 2)).astype(np.float32) for count in (5000, 1000))
    apart = np.sqrt(((held[:, None] - train[None]) ** 2).sum(2)).min(1)
    assert (apart < 0.02 * 2**0.5).mean() > 0.5, "with a fixed tolerance most would be near"
    assert leakage.find(Split(held, None), Split(train, None), spec).leakage.share < 0.02


def test_the_share_by_chance_is_that_of_training_rows_with_a_copy_among_the_others() -> None:
    spec = DataSpec(shape=(2,), columns=(Column(name="x"), Column(name="y")))
    train = np.random.default_rng(2).normal(size=(400, 2)).astype(np.float32)
    train[10], train[20] = train[11], train[21]
    train[30] = train[31] + np.float32(1e-4)
    held = np.random.default_rng(3).normal(size=(100, 2)).astype(np.float32)
    found = leakage.find(Split(held, None), Split(train, None), spec).leakage
    limit = leakage._Rows(spec, Split(train, None)).limit
    apart_MM = np.sqrt(((train[:, None].astype(float) - train[None]) ** 2).sum(2)) + 9.0 * np.eye(400)
    assert found.chance == (apart_MM <= limit).any(1).mean() >= 6 / 400


NARROW = {
    "one normal column": lambda g, n: g.normal(size=(n, 1)),
    "two normal columns": lambda g, n: g.normal(size=(n, 2)),
    "prices": lambda g, n: np.round(g.lognormal(3.0, 1.0, size=(n, 1)), 2),
    "counts": lambda g, n: g.poisson(3.0, size=(n, 3)),
    "two columns of few values": lambda g, n: g.integers(3, size=(n, 2)),
}


@pytest.mark.parametrize("kind", NARROW)
def test_independent_rows_are_no_leakage(kind: str) -> None:
    refused, tables = 0, 0
    for rows in (30, 100, 1_000):
        for seed in range(40):
            x_ND = NARROW[kind](np.random.default_rng([seed, rows]), rows).astype(np.float32)
            spec = DataSpec(shape=(x_ND.shape[1],), columns=tuple(Column(name=str(d)) for d in range(x_ND.shape[1])))
            held, train = x_ND[: rows // 5], x_ND[rows // 4 :]
            refused += leakage.find(Split(held, None), Split(train, None), spec).leakage.share > 0.01
            tables += 1
    assert binomtest(refused, tables, 0.01, alternative="greater").pvalue > 1e-3, f"{refused} of {tables} refused"


def test_copies_of_two_percent_of_the_rows_are_found_where_rows_do_not_repeat_by_chance() -> None:
    spec = DataSpec(shape=(6,), columns=tuple(Column(name=str(d)) for d in range(6)))
    for seed in range(30):
        x_ND = np.random.default_rng(seed).normal(size=(1_000, 6)).astype(np.float32)
        held, train = x_ND[:200], x_ND[300:]
        held[:4] = train[:4]
        found = leakage.find(Split(held, None), Split(train, None), spec).leakage
        assert found.share > 0.01 and found.least <= 0.02, (seed, found)


def test_copies_that_chance_explains_are_no_leakage_and_the_least_share_is_told() -> None:
    spec = DataSpec(shape=(1,), columns=(Column(name="x"),))
    x_ND = np.random.default_rng(0).normal(size=(1_000, 1)).astype(np.float32)
    found = leakage.find(Split(x_ND[:200], None), Split(x_ND[300:], None), spec).leakage
    assert found.near > 0 and found.share == 0.0
    assert 0.02 < found.chance < 0.12 and 0.01 < found.least < 0.1
    held = np.concatenate([x_ND[:180], x_ND[300:320]])
    copied = leakage.find(Split(held, None), Split(x_ND[300:], None), spec).leakage
    assert copied.exact == 20 and 0.09 < copied.share <= 0.2, "exact copies of numbers that do not repeat"
    assert "independent rows would give" in found.text()


def test_rows_of_categories_only_are_never_near_copies() -> None:
    spec = DataSpec(shape=(2,), columns=tuple(Column(name=name, categories=("no", "yes")) for name in "ab"))
    train = np.array([[0, 0], [0, 1]], np.float32)
    held = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    found = leakage.find(Split(held, None), Split(train, None), spec)
    assert found.pairs == ((2, 1),) and found.leakage.exact == 1


def test_the_report_shows_the_pairs(tmp_path: Path) -> None:
    train, held = pictures(30, 0), pictures(10, 1)
    held[4] = train[9]
    splits = Split(held, None), Split(train, None)
    leakage.write(leakage.find(*splits, IMAGES), *splits, IMAGES, tmp_path)
    assert (tmp_path / "leakage.png").read_bytes()[:4] == b"\x89PNG"
    x_ND, y_ND = rows(30, 0), rows(10, 1)
    y_ND[3] = x_ND[8] = [1.0, 0.5, 2.0, 0.0, -1.0]
    tables = Split(y_ND, None), Split(x_ND, None)
    leakage.write(leakage.find(*tables, TABLE), *tables, TABLE, tmp_path)
    assert (tmp_path / "leakage.csv").read_text().splitlines() == [
        "split,a,b,colour,c,d",
        "held_out,1,11,red,0,-1",
        "train,1,11,red,0,-1",
    ]
    none = leakage.LeakageFindings(leakage.find(Split(held[:1], None), Split(train[:1] // 2, None), IMAGES).leakage, ())
    leakage.write(none, *splits, IMAGES, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_leakage_from_before_keeps_its_digest_and_its_meaning() -> None:
    before = {"checked": 360, "exact": 1, "near": 2, "tolerance": "within 2% of the range"}
    read = Leakage.model_validate(before)
    assert read.to_json() == before and read.share == 3 / 360
    assert Leakage.model_validate({**before, "chance": 0.1, "beyond": 0.0}).to_json()["beyond"] == 0.0
