"""The shadow of a server: copies of requests are answered by the version that awaits it, counted, and shown to nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remint.errors import LedgerError
from remint.promotion.shadow import judge_waiting
from remint.promotion.why import why
from remint.runtime.home import Home
from remint.serving.app.follow import RETRY_SECONDS
from remint.serving.app.shadow import LARGEST, QUEUE, Shadow, is_copied
from remint.serving.load import load_version
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.ledger.shadow_counts import ShadowCounts, ShadowCountsTable
from remint.stores.open import open_ledger, open_shadow_counts
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.shadow_cases import SERVING, record_waiting, waiting
from tests.unit.test_serving_app import FAULTS, URL, Running, broken_latents, drawn

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    home = cases.copy_home(registered, tmp_path / "home")
    cases.append_row(home, "promoted", 1)
    return home


@pytest.fixture
def server(home: Home) -> Iterator[Running]:
    running = Running(home)
    with running.http:
        yield running


def shadowing(home: Home, running: Running, **serving: Any) -> Shadow:
    """Let version 2 await shadow, and look: return its shadow."""
    record_waiting(home, waiting(serving={**SERVING, **serving}))
    assert running.look() == 1
    assert running.slot.shadow is not None
    return running.slot.shadow


def counted(home: Home) -> list[ShadowCounts]:
    row = open_ledger(home).awaiting_shadow(MODEL)
    assert row is not None
    return open_shadow_counts(home).of(row.hash)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_version_that_awaits_shadow_answers_copies_and_nobody_sees_its_answers(home: Home, server: Running) -> None:
    alone = server.post("sample", {"count": 2, "seed": 5}).json()
    shadow = shadowing(home, server)
    for place in range(6):  # one after the other, so that none is dropped
        said = server.post("sample", {"count": 2, "seed": 5}).json()
        assert said == alone and said["version"] == 1
        wait_for(lambda done=place + 1: shadow.copies == done)
    x = drawn(load_version(home, f"{MODEL}/1"), 3)
    assert server.post("log_prob", {"x": x.tolist()}).json()["version"] == 1
    wait_for(lambda: shadow.copies == 7)
    assert f'remint_shadow_version{{model="{MODEL}"}} 2.0' in server.http.get("/metrics").text
    assert f'remint_shadow_copies{{model="{MODEL}"}} 7.0' in server.http.get("/metrics").text
    server.look()
    (part,) = counted(home)
    assert (part.copies, part.dropped, part.errors, len(part.seconds)) == (7, 0, {}, 7)
    both = [load_version(home, f"{MODEL}/{number}").log_prob(x[:1]).values[0] for number in (1, 2)]
    assert part.scores == (pytest.approx(tuple(both)),)
    assert ServingEvents(home.ledger_url).of(MODEL)[-1].event == "shadowed"
    assert [event.event for event in why(home, f"{MODEL}/2").served] == ["shadowed"]
    server.look()
    assert len(counted(home)) == 1, "nothing new, no row"


def test_the_answers_of_a_shadow_settle_its_version_and_the_server_follows(home: Home, server: Running) -> None:
    shadow = shadowing(home, server, answers=10)
    row = open_ledger(home).awaiting_shadow(MODEL)
    for done in (*range(1, 11), 10, 10):
        server.post("sample", {"count": 1, "seed": done})
        wait_for(lambda done=done: shadow.copies == done)
    server.look()
    assert row is not None and sum(part.copies for part in open_shadow_counts(home).of(row.hash)) == 10, "it has enough"
    (new,) = judge_waiting(home, MODEL, print, lambda *_: None)
    assert new.action == "promoted" and server.look() == 2 and server.slot.shadow is None
    assert server.post("sample", {"count": 1}).json()["version"] == 2
    assert [event.event for event in ServingEvents(home.ledger_url).of(MODEL)] == ["loaded", "shadowed", "switched"]


def test_what_a_shadow_fails_to_answer_is_counted_and_the_person_gets_the_answer(home: Home, server: Running) -> None:
    shadow, x = shadowing(home, server), drawn(load_version(home, f"{MODEL}/1"), 2)
    encode = shadow.version.served.model.encode  # type: ignore[operator]
    for how in ("raises", "nan"):
        shadow.version.served.model.encode = lambda x_BX, y_B=None, how=how: broken_latents(how, encode(x_BX, y_B))  # type: ignore[assignment]
        before = shadow.copies
        assert server.post("encode", {"x": x.tolist()}).status_code == 200
        wait_for(lambda before=before: shadow.copies == before + 1)
    server.look()
    (part,) = counted(home)
    assert part.errors == {"encode: RuntimeError": 1, "encode: values that are not finite": 1} and part.seconds == ()


def test_a_slow_shadow_drops_copies_and_delays_nobody(home: Home, server: Running) -> None:
    shadow, began, go = shadowing(home, server), threading.Event(), threading.Event()
    draw = shadow.version.served.model.sample

    def held(*given: Any, **more: Any) -> Any:
        began.set()
        assert go.wait(60)
        return draw(*given, **more)

    shadow.version.served.model.sample = held  # type: ignore[assignment]
    for _ in range(30):
        assert server.post("sample", {"count": 1}).status_code == 200
    assert began.wait(60) and shadow.copies == 0
    wait_for(lambda: shadow.dropped == 30 - 1 - QUEUE)
    go.set()
    wait_for(lambda: shadow.copies == 1 + QUEUE)
    server.look()
    assert sum(part.dropped for part in counted(home)) == 30 - 1 - QUEUE


def test_a_shadow_that_hangs_does_not_keep_the_server_from_following(
    home: Home, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow, began, go = shadowing(home, server), threading.Event(), threading.Event()
    monkeypatch.setattr("remint.serving.app.shadow.CLOSE_SECONDS", 0.1)

    def hangs(*_: Any, **__: Any) -> Any:
        began.set()
        assert go.wait(60)
        raise RuntimeError

    shadow.version.served.model.sample = hangs  # type: ignore[assignment]
    server.post("sample", {"count": 1})
    assert began.wait(60)
    cases.append_row(home, "promoted", 3)
    assert server.look() == 3 and server.slot.shadow is None
    go.set()


def test_large_requests_and_those_outside_the_share_are_not_copied(home: Home, server: Running) -> None:
    shadow = shadowing(home, server, shadow=0.3)
    large = server.post("sample", {"count": LARGEST + 1})
    assert large.status_code == 200
    for number in range(2, 42):
        due = shadow.copies + is_copied(shadow.request, shadow.server, number, 0.3)
        server.post("sample", {"count": 1})
        wait_for(lambda due=due: shadow.copies == due)
    assert 0 < shadow.copies < 40
    assert sum(is_copied("r", "s", number, 0.3) for number in range(10_000)) == pytest.approx(3_000, abs=200)


def test_a_version_that_fails_its_checks_answers_no_copies(home: Home, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        FAULTS["raises"](home, patched)
        record_waiting(home, waiting())
        assert server.look() == 1 and server.look() == 1 and server.slot.shadow is None
    events = ServingEvents(home.ledger_url).of(MODEL)
    assert [(event.event, event.version) for event in events] == [("loaded", 1), ("refused", 2)]
    assert "as a shadow: the canary's encode failed" in events[-1].why


def test_a_damaged_version_is_refused_as_a_shadow_and_asked_once_its_store_is_repaired(
    home: Home, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.flip_bit(home, 2)
    record_waiting(home, waiting())
    server.look()
    metric = 'remint_refused_version{model="%s"} %.1f'
    assert server.slot.shadow is None and metric % (MODEL, 2) in server.http.get("/metrics").text
    about = server.http.get(URL).json()
    assert about["version"] == 1 and about["refused"] == 2 and about["refused_because"].startswith("as a shadow: ")
    assert server.http.get("/v1/models").json() == [about]
    refused = why(home, f"{MODEL}/2").served[-1]
    assert refused.event == "refused" and refused.why.startswith("as a shadow: ") and "weights.safetensors" in refused.why
    said: list[str] = []
    assert judge_waiting(home, MODEL, said.append, lambda *_: None) == []
    assert f"{refused.host} refused it: {refused.why}" in said[0]
    cases.flip_bit(home, 2)  # back
    server.look()
    assert server.slot.shadow is None, "it pauses"
    monkeypatch.setattr("time.monotonic", lambda now=time.monotonic: now() + RETRY_SECONDS)
    server.look()
    assert server.slot.shadow is not None and metric % (MODEL, 0) in server.http.get("/metrics").text
    assert server.http.get(URL).json()["refused_because"] is None
    assert judge_waiting(home, MODEL, said.append, lambda *_: None) == [] and "refused it" not in said[1]


def test_a_shadow_that_is_refused_again_is_recorded_once(home: Home, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remint.serving.app.follow.RETRY_SECONDS", 0.0)
    record_waiting(home, waiting())
    cases.delete_version(home, 2)
    told = len(server.said)
    for _ in range(3):
        server.look()
    assert len(server.said) == told + 1 and "as a shadow: " in server.said[-1] and not server.follower.problems
    assert [event.event for event in ServingEvents(home.ledger_url).of(MODEL)] == ["loaded", "refused"]


def test_counts_that_could_not_be_written_are_written_later(home: Home, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = shadowing(home, server)

    def away(*_: object, **__: object) -> None:
        raise LedgerError("the ledger is away")

    for number in (1, 2):
        server.post("sample", {"count": 1})
        wait_for(lambda number=number: shadow.copies == number)
        with monkeypatch.context() as patched:
            patched.setattr(ShadowCountsTable, "append", away)
            server.look()
    assert counted(home) == []
    server.look()
    assert [part.copies for part in counted(home)] == [1, 1]
    server.post("sample", {"count": 1})
    wait_for(lambda: shadow.copies == 3)
    server.follower._stop.set()  # the end writes what is left
    server.follower._thread.join()
    server.follower._end_shadow(server.slot)
    assert [part.copies for part in counted(home)] == [1, 1, 1]


def test_only_a_name_that_follows_its_champion_has_a_shadow(home: Home) -> None:
    record_waiting(home, waiting())
    for ref in (f"{MODEL}/1", f"{MODEL}@challenger"):
        running = Running(home, refs=(ref,))
        with running.http:
            running.look()
            assert running.slot.shadow is None
