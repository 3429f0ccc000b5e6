"""Garbage collection in random worlds removes exactly the nodes that no root and no young node needs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remint.maintenance.gc.reach import Node, Thing, unreached

COUNT = 12  # numbers of versions, runs and pieces of data


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[Node, list[Node]], dict[Node, float], set[Node]]:
    """Return versions with one run each and shared pieces of data, which may need each other; ages; and roots."""
    numbers = st.integers(0, COUNT - 1)
    needs: dict[Node, list[Node]] = {}
    for number in range(draw(numbers) + 1):
        pieces = draw(st.sets(numbers, max_size=4))
        needs["MLflow", f"m/{number}"] = [("MLflow", f"run {number}"), *(("DVC", f"{piece}") for piece in pieces)]
        needs["MLflow", f"run {number}"] = []
    for piece in range(COUNT):
        needs["DVC", f"{piece}"] = [("DVC", f"{other}") for other in draw(st.sets(numbers, max_size=2))]
    ages = {node: draw(st.floats(0.0, 10.0)) for node in needs}
    return needs, ages, {node for node in needs if node[1].startswith("m/") and draw(st.booleans())}


def paths_to(node: Node, needs: dict[Node, list[Node]]) -> set[Node]:
    """Return all nodes that need a node. This searches backwards, while the code under test searches forwards."""
    found = {node}
    while True:
        more = {who for who, what in needs.items() if found & set(what)} - found
        if not more:
            return found
        found |= more


@given(worlds(), st.floats(0.0, 11.0))
def test_exactly_the_unneeded_nodes_are_removed(
    world: tuple[dict[Node, list[Node]], dict[Node, float], set[Node]], before: float
) -> None:
    needs, since, roots = world
    things = [Thing(store, name, since[store, name], "") for store, name in needs]
    found, marked = unreached(things, roots, lambda node: needs[node], before)
    removed = {thing.node for thing in found}
    for node in needs:
        stays = any(who in roots or since[who] >= before for who in paths_to(node, needs))
        assert (node not in removed) == stays == (node in marked)


@given(worlds())
def test_a_second_collection_removes_nothing(
    world: tuple[dict[Node, list[Node]], dict[Node, float], set[Node]],
) -> None:
    needs, since, roots = world
    things = [Thing(store, name, since[store, name], "") for store, name in needs]
    found, _ = unreached(things, roots, lambda node: needs[node], float("inf"))
    left = [thing for thing in things if thing not in found]
    assert unreached(left, roots, lambda node: needs[node], float("inf"))[0] == []
    assert roots <= {thing.node for thing in left}


def test_an_unreachable_cycle_is_removed_together() -> None:
    ring: dict[Node, list[Node]] = {("a", "1"): [("a", "2")], ("a", "2"): [("a", "1")]}
    found, _ = unreached([Thing(*node, 0.0, "") for node in ring], [], lambda node: ring[node], 1.0)
    assert {thing.node for thing in found} == set(ring)
