"""The server: each answer is that of the version alone, it follows the ledger, and a version that fails its checks is not served."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from flows.stack.console import pages
from remint.errors import IntegrityError, LedgerError, NotFoundError, SettingsError
from remint.maintenance.audit.ledger import serving
from remint.maintenance.metrics.exporter import Exporter
from remint.promotion.shadow import settings_of
from remint.promotion.why import sections, why
from remint.records import Column, DataSpec
from remint.runtime.home import Home
from remint.serving.app import answers, canary, follow, run
from remint.serving.app.api import create_app
from remint.serving.app.follow import Follower
from remint.serving.app.limits import TOGETHER, Limits, QueueFull
from remint.serving.app.slot import Slot, Version
from remint.serving.load import load_version
from remint.serving.model import ServedModel
from remint.settings.params import load_params
from remint.stores.ledger.database import Database
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.mlflow import ModelVersion
from remint.stores.open import fetch_bundle, open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.calibrated_cases import calibrated_model
from tests.support.models_cases import CASES, examples
from tests.support.promotion_cases import MODEL
from tests.support.team import SOURCE

pytestmark = pytest.mark.usefixtures("forked")
URL = f"/v1/models/{MODEL}"
LIMITS = Limits()


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    home = cases.copy_home(registered, tmp_path / "home")
    cases.append_row(home, "promoted", 1)
    return home


class Running:
    """A server in this process, whose follower looks when it is told to."""

    def __init__(self, home: Home, limits: Limits = LIMITS, token: str | None = None, refs: tuple[str, ...] = (MODEL,)) -> None:
        self.said: list[str] = []
        self.app = run.build(run.Serving(home, refs, limits, 3600.0, "cpu", token, self.said.append, settings_of))
        api = next(route for route in self.app.app.routes if route.path == "/readyz").endpoint.__self__
        self.follower, self.slot = api.follower, api.slots[MODEL]
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def look(self) -> int:
        self.follower.look(MODEL)
        return self.slot.version.number

    def post(self, method: str, body: Any = None, **more: Any) -> Any:
        return self.http.post(f"{URL}:{method}", json=body, **more)


@pytest.fixture
def server(home: Home) -> Iterator[Running]:
    running = Running(home)
    with running.http:
        yield running


def drawn(served: ServedModel, count: int = 5) -> np.ndarray:
    return np.asarray(served.sample(count, seed=9))


def test_each_method_answers_as_the_model_alone(home: Home, server: Running) -> None:
    served = load_version(home, MODEL)
    x, z = drawn(served), served.encode(drawn(served))
    expected = {
        "sample": ({"count": 3, "seed": 4, "temperature": 0.5}, served.sample(3, 4, temperature=0.5)),
        "log_prob": ({"x": x.tolist(), "draws": 2, "seed": 1}, served.log_prob(x, draws=2, seed=1).values),
        "encode": ({"x": x.tolist()}, z),
        "decode": ({"z": z.tolist()}, served.decode(z)),
        "reconstruct": ({"x": x.tolist()}, served.reconstruct(x)),
        "interpolate": ({"x": x[:2].tolist(), "steps": 4}, served.interpolate(x[:1], x[1:2], 4)),
    }
    gone = np.zeros((4, 4), bool)
    gone[0, 1] = True
    expected["impute"] = (
        {"x": x.tolist(), "missing": gone.tolist(), "draws": 3, "seed": 2},
        served.impute(x, missing=gone, draws=3, seed=2).filled,
    )
    assert {*expected, "score"} == answers.ANSWERS.keys()
    refused = server.post("score", {"x": x.tolist()})
    assert refused.status_code == 422 and "has no calibration" in refused.json()["detail"]
    for method, (body, values) in expected.items():
        said = server.post(method, body).json()
        assert np.allclose(np.asarray(said["values"]), values, rtol=1e-6), method
        assert (said["model"], said["version"], said["weights_sha256"]) == (MODEL, 1, served.weights_sha256)
    about = server.http.get(URL).json()
    assert about["version"] == 1 and about["refused"] is None and f"{MODEL}/1 was promoted" in about["decision"]
    assert server.http.get("/v1/models").json() == [about]
    assert server.http.get("/readyz").text == "ready\n" and server.http.get("/healthz").status_code == 200
    page = server.http.get("/metrics").text
    assert f'remint_requests_total{{method="encode",model="{MODEL}",status="200"}} 1.0' in page
    assert f'remint_version{{model="{MODEL}"}} 1.0' in page


def test_the_metrics_of_the_installation_are_beside_those_of_the_server(home: Home) -> None:
    """As `remint serve` and the console of `remint up` put them together."""
    shown = pages(home, lambda: load_params(SOURCE))
    app = run.build(run.Serving(home, (MODEL,), LIMITS, 3600.0, "cpu", None, lambda _: None, settings_of), shown)
    assert isinstance(shown.metrics, Exporter)
    with TestClient(app) as http, closing(shown.metrics):
        page = http.get("/metrics").text
    names = [family.name for family in text_string_to_metric_families(page)]
    assert len(names) == len(set(names)), "no metric is there twice"
    for line in (
        f'remint_version{{model="{MODEL}"}} 1.0',
        f'remint_champion_version{{pipeline="{MODEL}"}} 1.0',
        f'remint_decisions_total{{pipeline="{MODEL}",verdict="promoted"}} 1.0',
        'remint_up{part="ledger"} 1.0',
    ):
        assert line in page.splitlines()
    assert 'part="prefect"' not in page, "no server of Prefect is known here"


def test_the_page_of_the_openapi_document_loads_nothing_from_another_host(server: Running) -> None:
    answer = server.http.get("/docs")
    assert answer.status_code == 200 and "//" not in answer.text
    needed = re.findall(r'(?:src|href)="(/[^"]+)"', answer.text)
    assert len(needed) == 2 and all(server.http.get(path).status_code == 200 for path in needed)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "script-src 'self' 'sha256-" in policy
    assert server.http.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert server.http.get("/redoc").status_code == 404


def test_files_are_bodies_and_answers(home: Home, server: Running) -> None:
    served = load_version(home, MODEL)
    stream = io.BytesIO()
    np.save(stream, x := drawn(served))
    said = server.http.post(
        f"{URL}:reconstruct",
        content=stream.getvalue(),
        headers={"content-type": "application/x-npy", "accept": "application/x-npy"},
    )
    assert np.array_equal(np.load(io.BytesIO(said.content)), x) and said.headers["x-remint-version"] == "1"
    picture = server.post("sample", {"count": 9}, headers={"accept": "image/png"})
    assert picture.content.startswith(b"\x89PNG") and picture.headers["content-type"] == "image/png"
    assert server.post("sample", headers={"accept": "application/vnd.apache.parquet"}).status_code == 422


WRONG: dict[str, tuple[int, str, Any, str]] = {
    "another shape": (422, "encode", {"x": np.zeros((1, 1, 5, 6)).tolist()}, "size: the model has 4x4, these have 5x6"),
    "no images": (422, "encode", {}, 'expected {"x": [image, ..]}'),
    "ragged lists": (422, "encode", {"x": [[1], [1, 2]]}, "lists have different lengths"),
    "text": (422, "encode", {"x": ["a"]}, "no array of numbers"),
    "empty": (422, "encode", {"x": []}, "is empty"),
    "too high": (422, "encode", {"x": np.full((1, 1, 4, 4), 77).tolist()}, "is not in 0 .. 4"),
    "an unknown key": (422, "sample", {"cuont": 3}, "cuont: Extra inputs are not permitted"),
    "no count": (422, "sample", {"count": 0}, "count: Input should be greater than or equal to 1"),
    "a class": (422, "sample", {"class": "3"}, "remove the class"),
    "one end": (422, "interpolate", {"x": np.zeros((1, 1, 4, 4)).tolist()}, "takes two examples"),
    "latents of another size": (422, "decode", {"z": [[1.0, 2.0]]}, "expected finite numbers (N, 16)"),
    "no latents": (422, "decode", {}, "no array"),
    "too many": (413, "sample", {"count": 10_001}, "10,001 examples are more than the 10,000"),
    "too many draws": (
        413,
        "log_prob",
        {"x": np.zeros((200, 1, 4, 4), int).tolist(), "draws": 4096},
        "4,096 draws of 200 examples are more than the 640,000",
    ),
    "not an object": (422, "sample", [1], "not a JSON object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_in_one_line(server: Running, name: str) -> None:
    status, method, body, message = WRONG[name]
    said = server.post(method, body)
    assert said.status_code == status and message in said.json()["detail"] and "\n" not in said.json()["detail"]


def test_bodies_that_are_no_json_and_names_that_are_none_are_refused(server: Running) -> None:
    for content, kind in (
        (b"{", "application/json"),
        (b"\x00" * 9, "application/x-npy"),
        (b"", "image/png"),
        (b"[" * 99_999, ""),
    ):
        said = server.http.post(f"{URL}:encode", content=content, headers={"content-type": kind} if kind else {})
        assert said.status_code == 422 and "\n" not in said.json()["detail"]
    assert server.http.post("/v1/models/none:sample", json={}).status_code == 404
    assert server.http.get("/v1/models/none").status_code == 404
    assert "unknown model 'no\\nne': this" in server.http.get("/v1/models/no%0Ane").json()["detail"]
    assert server.http.post(f"{URL}:nothing", json={}).status_code in (404, 405)


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


LATENTS = npy(np.zeros((2, 16)))
WRONG_LATENTS = {
    "empty file": b"",
    "cut off": LATENTS[:-9],
    "a pickle": npy(np.array([{}], object), allow_pickle=True),
    "claims eight terabytes": LATENTS.replace(b"(2, 16), }" + b" " * 12, b"(1000000000000, 16), }"),
    "text": npy(np.array([["a"] * 16])),
    "no latents": npy(np.zeros((0, 16))),
    "one number": npy(np.float64(1)),
    "an archive": b"PK\x03\x04",
}


assert WRONG_LATENTS["claims eight terabytes"] != LATENTS


@pytest.mark.parametrize("name", WRONG_LATENTS)
def test_files_that_hold_no_latents_are_refused(server: Running, name: str) -> None:
    headers = {"content-type": "application/x-npy"}
    said = server.http.post(f"{URL}:decode", content=WRONG_LATENTS[name], headers=headers)
    assert said.status_code == 422 and "\n" not in said.json()["detail"]
    assert server.http.post(f"{URL}:decode", content=LATENTS, headers=headers).status_code == 200


def test_the_rows_of_a_parquet_file_are_counted_before_they_are_read(server: Running) -> None:
    stream = io.BytesIO()
    pd.DataFrame({"a": np.zeros(10_001)}).to_parquet(stream)
    content = bytearray(stream.getvalue())
    content[4:40] = bytes(36)  # it cannot be read any more, and its footer is whole
    said = server.http.post(f"{URL}:encode", content=bytes(content), headers={"content-type": "application/vnd.apache.parquet"})
    assert said.status_code == 413 and "10,001 examples are more than the 10,000" in said.json()["detail"]


def test_half_a_surrogate_pair_is_refused(server: Running) -> None:
    for content in (b'{"class": "\\uD800"}', b'{"\\ud800": 1}', b'{"class": "\xed\xa0\x80"}'):
        said = server.http.post(f"{URL}:sample", content=content)
        assert said.status_code == 422 and "the body is not JSON" in said.json()["detail"]


def test_limits_and_token(home: Home) -> None:
    running = Running(home, Limits(body_bytes=1000), token="secret")
    with running.http as http:
        assert http.get("/healthz").status_code == 200 and http.get("/metrics").status_code == 401
        assert http.post(f"{URL}:sample", json={}, headers={"authorization": "Bearer wrong"}).status_code == 401
        good = {"authorization": "Bearer secret"}
        assert http.post(f"{URL}:sample", json={}, headers=good).status_code == 200
        large = http.post(f"{URL}:sample", content=b" " * 1001, headers=good)
        assert large.status_code == 413 and "more than 1,000 bytes" in large.json()["detail"]
        page = http.get("/metrics", headers=good).text
        assert 'remint_requests_total{method="",model="",status="401"} 2.0' in page
        assert 'remint_requests_total{method="",model="",status="413"} 1.0' in page


def test_the_bodies_of_all_requests_share_a_bound_and_arrive_in_time(home: Home) -> None:
    """Clients that stop in the middle of a body hold its bytes until its time is over."""
    running = Running(home, Limits(body_bytes=1000, seconds=1.5))
    body = b'{"count": 1}' + b" " * 900

    async def talk() -> tuple[list[tuple[int, str]], int]:
        async def ask(part: bytes, *, whole: bool) -> tuple[int, str]:
            scope = {"type": "http", "method": "POST", "path": f"{URL}:sample", "headers": [], "query_string": b""}
            sent: list[Any] = []
            parts = [{"type": "http.request", "body": part, "more_body": not whole}]

            async def receive() -> Any:
                return parts.pop() if parts else await asyncio.Event().wait()

            async def send(message: Any) -> None:
                sent.append(message)

            await running.app(scope, receive, send)
            return sent[0]["status"], json.loads(sent[1]["body"]).get("detail", "")

        stopped = [asyncio.create_task(ask(body[:900], whole=False)) for _ in range(TOGETHER)]
        await asyncio.sleep(0.1)
        full = await ask(body, whole=True)
        held = running.app.held
        return [full, *await asyncio.gather(*stopped), await ask(body, whole=True)], held

    with running.http:
        (full, *stopped, last), held = asyncio.run(talk())
    assert held == TOGETHER * 900 and full == (429, "all requests have 8,112 bytes at the moment: ask again later")
    assert stopped == [(408, "the body did not arrive within 1.5 s")] * TOGETHER
    assert last == (200, "") and running.app.held == 0


def test_the_examples_of_all_names_share_a_bound(home: Home) -> None:
    running = Running(home, Limits(examples=10))
    with running.http, ThreadPoolExecutor(TOGETHER) as pool:
        began, go = hold(running.slot)
        first = pool.submit(running.post, "sample", {"count": 10})
        assert began.wait(60)
        others = [pool.submit(running.post, "sample", {"count": 10}) for _ in range(TOGETHER - 1)]
        while running.slot.room.taken < 10 * TOGETHER:
            time.sleep(0.01)
        refused = running.post("sample", {"count": 1})
        assert refused.status_code == 429 and "80 examples wait already" in refused.json()["detail"]
        go.set()
        assert [each.result().status_code for each in (first, *others)] == [200] * TOGETHER
        assert running.slot.room.taken == 0 and running.post("sample", {"count": 10}).status_code == 200


@pytest.mark.parametrize("token", ["", "a b", "geheimnis\u00e4", "a\n"])
def test_a_token_that_no_client_can_send_is_refused(token: str) -> None:
    with pytest.raises(SettingsError, match="REMINT_SERVE_TOKEN is empty, or has spaces"):
        run.check([MODEL], "127.0.0.1", token, print)


def hold(slot: Slot) -> tuple[threading.Event, threading.Event]:
    """Make the slot's present version wait in its next answer: return an event when it began, and the one that lets it go on."""
    began, go = threading.Event(), threading.Event()
    assert slot.version is not None
    served = slot.version.served

    class Held(ServedModel):
        def draw(self, *given: Any, **more: Any) -> Any:
            if not began.is_set():  # the canary of the next version asks it too
                began.set()
                assert go.wait(60)
            return served.draw(*given, **more)

    held = Held(served.model, served.spec, ref=served.ref, weights_sha256=served.weights_sha256)
    slot.version = Version(held, slot.version.number, slot.version.since, "")
    return began, go


def test_a_switch_keeps_requests_in_flight_on_their_version(home: Home, server: Running) -> None:
    first = load_version(home, f"{MODEL}/1").sample(2, seed=5)
    began, go = hold(server.slot)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.post, "sample", {"count": 2, "seed": 5})
        assert began.wait(60)
        cases.append_row(home, "promoted", 2)
        assert server.look() == 2
        go.set()
        said = asked.result().json()
    assert said["version"] == 1 and np.array_equal(said["values"], first)
    assert np.array_equal(
        server.post("sample", {"count": 2, "seed": 5}).json()["values"], load_version(home, MODEL).sample(2, seed=5)
    )


def test_more_requests_than_may_wait_are_429_and_slow_ones_503(home: Home) -> None:
    running = Running(home, Limits(waiting=2, seconds=0.5))
    with running.http:
        began, go = hold(running.slot)
        with ThreadPoolExecutor() as pool:
            first = pool.submit(running.post, "sample", {})
            assert began.wait(60)
            others = list(pool.map(lambda seed: running.post("sample", {"seed": seed}), range(3)))
        assert first.result().status_code == 503 and "no answer within 0.5 s" in first.result().json()["detail"]
        assert sorted(said.status_code for said in others) == [429, 503, 503]
        go.set()
    with pytest.raises(Exception, match="the server stops"):
        running.slot.ask(lambda version: answers.Request("sample", places=[(0, 0)], options={"temperature": 1.0}))


def test_requests_that_wait_together_share_blocks_and_are_those_of_each_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    together = answers.answer

    def counted(served: ServedModel, asked: Any) -> Any:
        sizes.append(len(asked))
        return together(served, asked)

    monkeypatch.setattr("remint.serving.app.slot.answer", counted)
    alone = {seed: server.post("sample", {"seed": seed, "count": 2}).json()["values"] for seed in range(8)}
    began, go = hold(server.slot)
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(server.post, "sample", {})
        assert began.wait(60)
        asked = {seed: pool.submit(server.post, "sample", {"seed": seed, "count": 2}) for seed in range(8)}
        while server.slot.waiting < 8:
            time.sleep(0.01)
        go.set()
        assert {seed: each.result().json()["values"] for seed, each in asked.items()} == alone
    assert first.result().status_code == 200 and sizes[-1] == 8


def test_the_ledger_is_followed_and_an_alias_in_mlflow_is_not(home: Home, server: Running) -> None:
    open_tracking(home).set_alias(MODEL, "champion", 3)
    assert server.look() == 1
    cases.append_row(home, "kept", 2)
    assert server.look() == 1
    cases.append_row(home, "promoted", 2)
    assert server.look() == 2
    open_ledger(home).append(MODEL, "rolled_back", 2, champion_after=1, who="ada", why="", evidence="", expected_champion=2)
    assert server.look() == 1 and server.follower.switches == 2
    events = ServingEvents(home.ledger_url).of(MODEL)
    assert [(event.event, event.version) for event in events] == [("loaded", 1), ("switched", 2), ("switched", 1)]
    assert "drew its recorded samples, and answered sample, log_prob, encode, reconstruct" in events[0].why


def test_names_are_given_once_and_exist(home: Home) -> None:
    with pytest.raises(SettingsError, match=f"{MODEL} is given twice"):
        run.check([MODEL, f"{MODEL}/2"], "127.0.0.1", None, print)
    with pytest.raises(NotFoundError, match="has no challenger"):
        Running(home, refs=(f"{MODEL}@challenger",))


def broken(how: str, message: str) -> Callable[[Home, pytest.MonkeyPatch], str]:
    def act(home: Home, monkeypatch: pytest.MonkeyPatch) -> str:
        whole = follow.load.of_version

        def of_version(home: Home, version: ModelVersion, device: str) -> ServedModel:
            served = whole(home, version, device)
            encode = served.model.encode  # type: ignore[operator]
            served.model.encode = lambda x_BX, y_B=None: broken_latents(how, encode(x_BX, y_B))  # type: ignore[assignment]
            return served

        monkeypatch.setattr(follow.load, "of_version", of_version)
        return message

    return act


def broken_latents(how: str, z_BZ: Tensor) -> Tensor:
    if how == "raises":
        raise RuntimeError("an index is out of range")
    if how == "slow":
        time.sleep(0.3)
    return z_BZ * float("nan") if how == "nan" else z_BZ


FAULTS = {
    "raises": broken("raises", "canary's encode failed: RuntimeError: an index is out of range"),
    "nan": broken("nan", "canary's encode has values that are not finite"),
    "slow": broken("slow", "canary's encode took 0.*the present version takes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_version_that_fails_its_checks_is_refused_and_the_present_one_goes_on(
    home: Home, server: Running, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = server.post("sample", {}).json()
    with monkeypatch.context() as patched:
        message = FAULTS[name](home, patched)
        cases.append_row(home, "promoted", 2)
        assert server.look() == 1 and server.look() == 1
    events = ServingEvents(home.ledger_url).of(MODEL)
    assert [(event.event, event.version) for event in events] == [("loaded", 1), ("refused", 2)]
    assert re.search(message, events[-1].why), events[-1].why
    assert server.post("sample", {}).json() == before and server.http.get(URL).json()["refused"] == 2
    cases.append_row(home, "promoted", 3)
    assert server.look() == 3 and server.http.get(URL).json()["refused"] is None


def test_a_champion_that_was_refused_is_tried_again_after_a_growing_pause_and_recorded_once(
    home: Home, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tried = [0.0], list[float]()
    monkeypatch.setattr("remint.serving.app.follow.time", SimpleNamespace(monotonic=lambda: now[0]))

    def fails(*arguments: Any) -> ServedModel:
        tried.append(now[0])
        raise IntegrityError(f"not this time: it is {now[0]:.0f}")

    cases.append_row(home, "promoted", 2)
    with monkeypatch.context() as patched:
        patched.setattr(follow.load, "of_version", fails)
        for _ in range(3 * 60):  # in three hours, a look each minute
            assert server.look() == 1
            now[0] += 60.0
    assert (np.diff(tried) / 60).tolist() == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert [(event.event, event.version) for event in ServingEvents(home.ledger_url).of(MODEL)] == [("loaded", 1), ("refused", 2)]
    assert server.http.get(URL).json()["refused_because"] == f"not this time: it is {tried[-1]:.0f}"
    now[0] += 1_800.0
    assert server.look() == 2 and server.http.get(URL).json()["refused"] is None, "its store was repaired"
    assert ServingEvents(home.ledger_url).of(MODEL)[-1].event == "switched"


def test_damaged_bytes_are_refused(home: Home, server: Running) -> None:
    version = open_tracking(home).version(f"{MODEL}/2")
    folder = fetch_bundle(home, version)
    stored = [
        path
        for path in home.path.rglob("weights.safetensors")
        if path.read_bytes() == (folder / "weights.safetensors").read_bytes()
    ]
    assert len(stored) >= 2
    for path in stored:
        damaged = bytearray(path.read_bytes())
        damaged[-5] ^= 1
        path.chmod(0o600)
        path.write_bytes(damaged)
    cases.append_row(home, "promoted", 2)
    assert server.look() == 1
    assert ServingEvents(home.ledger_url).of(MODEL)[-1].event == "refused"


def test_a_store_that_is_away_changes_nothing_and_is_asked_again(
    home: Home, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.append_row(home, "promoted", 2)

    def away(*_: object) -> None:
        raise LedgerError("the ledger is away")

    with monkeypatch.context() as patched:
        patched.setattr(follow, "resolve", away)
        assert server.look() == 1 and server.look() == 1
    assert sum("the ledger is away; it goes on with what it has" in line for line in server.said) == 1
    assert f'remint_following{{model="{MODEL}"}} 0.0' in server.http.get("/metrics").text
    assert server.post("sample", {}).status_code == 200
    assert server.look() == 2


def test_an_event_of_a_time_without_ledger_is_recorded_later_and_once(
    home: Home, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise LedgerError("the ledger is away")

    with monkeypatch.context() as patched:
        patched.setattr(follow, "open_serving_events", away)
        FAULTS["nan"](home, patched)
        cases.append_row(home, "promoted", 2)
        assert server.look() == 1 and server.look() == 1
        before = datetime.now(UTC)
        patched.undo()
        assert [(event.event, event.version) for event in ServingEvents(home.ledger_url).of(MODEL)] == [("loaded", 1)]
    assert "digits-flow/2: the event is not recorded yet: the ledger is away" in server.said
    assert server.look() == 1 and server.look() == 1
    events = ServingEvents(home.ledger_url)
    assert [(event.event, event.version) for event in events.of(MODEL)] == [("loaded", 1), ("refused", 2)]
    assert datetime.fromisoformat(events.of(MODEL)[-1].at) < before and events.verify(MODEL) == []


def test_a_server_makes_no_ledger(home: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    empty = Home(home.repository, tmp_path / "elsewhere/none")
    with pytest.raises(NotFoundError, match=r"there is no ledger at .*none/ledger.db: the first remint run makes it"):
        Running(empty)
    assert not empty.path.exists()
    running = Running(home)
    (home.path / "ledger.db").rename(home.path / "moved.db")
    with running.http:
        assert running.look() == 1 and not (home.path / "ledger.db").exists()
        assert any("there is no ledger at" in line and "it goes on with what it has" in line for line in running.said)
        (home.path / "moved.db").rename(home.path / "ledger.db")
        cases.append_row(home, "promoted", 2)
        assert running.look() == 2


def test_a_fault_does_not_end_the_follower_and_is_told_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    running, looks = Running(home), threading.Semaphore(0)
    running.follower.every = 0.01
    cases.append_row(home, "promoted", 2)

    def faulty(*_: object) -> None:
        looks.release()
        raise KeyError("x_NX")

    with monkeypatch.context() as patched:
        patched.setattr(follow.load, "of_version", faulty)
        running.follower._stop.set()  # the long wait of the first look ends here
        running.follower._thread.join()
        running.follower._stop.clear()
        running.follower._thread = threading.Thread(target=running.follower._follow, daemon=True)
        running.follower._thread.start()
        assert all(looks.acquire(timeout=60) for _ in range(3))
        with running.http as http:
            assert f'remint_following{{model="{MODEL}"}} 0.0' in http.get("/metrics").text
            assert sum("KeyError: 'x_NX'; it goes on with what it has" in line for line in running.said) == 1
            patched.undo()
            while running.slot.version.number != 2:
                time.sleep(0.01)


def test_a_look_that_takes_long_does_not_hold_up_the_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    running, began, go = Running(home), threading.Event(), threading.Event()
    monkeypatch.setattr(follow, "STOP_SECONDS", 0.1)

    def locked(*_: object) -> None:
        began.set()
        assert go.wait(60)
        raise LedgerError("the ledger is locked")

    monkeypatch.setattr(follow, "resolve", locked)
    running.follower._thread = threading.Thread(target=running.look, daemon=True)
    running.follower._thread.start()
    assert began.wait(60)
    with running.http:
        pass  # it ends here
    assert running.follower._thread.is_alive()
    go.set()
    running.follower._thread.join()


def test_one_request_that_fails_fails_alone(server: Running) -> None:
    began, go = hold(server.slot)
    good = answers.Request("decode", np.zeros((2, 16), np.float32))
    bad = answers.Request("decode", np.zeros((2, 15), np.float32))
    server.slot.ask(lambda _: answers.Request("sample", places=[(0, 0)], options={"temperature": 1.0}))
    assert began.wait(60)
    waiting = [server.slot.ask(lambda _, each=each: each) for each in (good, bad, good)]  # type: ignore[misc]
    go.set()
    first, failed, last = (each.exception(60) for each in waiting)
    assert first is None and last is None and failed is not None


def test_requests_that_were_given_up_do_not_count_as_waiting(server: Running) -> None:
    began, go = hold(server.slot)
    server.slot.most_waiting = 2
    request = answers.Request("sample", places=[(0, 0)], options={"temperature": 1.0})
    server.slot.ask(lambda _: request)
    assert began.wait(60)
    given_up = [server.slot.ask(lambda _: request) for _ in range(2)]
    assert all(each.cancel() for each in given_up) and server.slot.waiting == 0
    asked = server.slot.ask(lambda _: request)
    go.set()
    assert asked.exception(60) is None


def test_an_idle_server_keeps_no_former_version(home: Home, server: Running) -> None:
    assert server.post("sample", {}).status_code == 200
    former = weakref.ref(server.slot.version.served.model)
    cases.append_row(home, "promoted", 2)
    assert server.look() == 2
    gc.collect()
    assert former() is None


def test_a_present_version_that_cannot_answer_the_canary_is_no_reason_to_keep_it() -> None:
    case = CASES["vae-mixture"]
    calibrated = calibrated_model(case)
    present = ServedModel(case.build().float().requires_grad_(False), case.spec, ref="m/1")
    assert "score" in canary.run(calibrated, present, None)


def test_no_request_fails_and_no_answer_is_mixed_while_champions_change(home: Home, server: Running) -> None:
    alone = {number: load_version(home, f"{MODEL}/{number}").sample(3, seed=6).tolist() for number in (1, 2, 3)}
    stop, problems, counts = threading.Event(), [], [0] * 4

    def ask(place: int) -> None:
        while not stop.is_set():
            said = server.post("sample", {"count": 3, "seed": 6})
            if said.status_code != 200 or said.json()["values"] != alone[said.json()["version"]]:
                problems.append(said.text)
            counts[place] += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, place) for place in range(4)]
        for number in (2, 3, 1, 2, 3):
            cases.append_row(home, "promoted", number)
            assert server.look() == number
        stop.set()
        assert all(each.exception() is None for each in asking)
    assert not problems and min(counts) > 0 and server.follower.switches == 5


def test_events_are_a_chain(home: Home) -> None:
    events = ServingEvents(home.ledger_url)
    first = events.append(MODEL, "loaded", 1, "a", "it passed")
    assert events.append(MODEL, "loaded", 1, "a", "it passed") == first, "one for each version and host"
    second = events.append(MODEL, "loaded", 1, "b", "it passed")
    third = events.append(MODEL, "switched", 2, "a", "it passed")
    assert (second.previous, third.previous) == (first.hash, second.hash) and events.verify(MODEL) == []
    assert [event.event for event in why(home, f"{MODEL}/1").served] == ["loaded", "loaded"]
    assert "b: loaded: it passed" in str(sections(why(home, f"{MODEL}/1")))
    database = Database(home.ledger_url)
    with database.write(MODEL) as connection:
        connection.execute(sa.text("UPDATE serving_events SET version = 9 WHERE sequence = 2"))
    assert len(events.verify(MODEL)) == 1
    assert [found.finding.kind for found in serving(events, MODEL)] == ["ledger"]
    with database.write(MODEL) as connection:
        connection.execute(sa.text("DELETE FROM serving_events WHERE sequence = 2"))
    assert len(events.verify(MODEL)) == 1


def test_a_table_is_served_by_rows(tmp_path: Path) -> None:
    case = CASES["flow-table"]
    label = Column(name="kind", categories=("0", "1", "2"))
    spec: DataSpec = case.spec.model_copy(update={"label": label, "class_names": label.categories})
    served = ServedModel(case.build(spec).float().requires_grad_(False), spec, ref="m/1")
    slot = Slot("m", 9)
    slot.version = Version(served, 1, "", "")
    follower = Follower(Home.of(tmp_path), {}, 3600.0, "cpu", print)
    follower._thread.start()
    rows = served.sample(4, seed=1)
    with TestClient(create_app({"m": slot}, follower, Limits())) as http:
        said = http.post("/v1/models/m:encode", json={"rows": rows.to_dict("records")})
        assert np.allclose(said.json()["values"], served.encode(rows), rtol=1e-5)
        again = http.post("/v1/models/m:sample", json={"count": 4, "seed": 1}).json()
        assert [row["kind"] for row in again["values"]] == rows["kind"].tolist() == again["classes"]
        for wrong in (
            {"rows": []},
            {"rows": [{"age": 1}]},
            {"rows": 3},
            {"x": [[1]]},
            {"rows": [{**rows.iloc[0].to_dict(), "colour": "no"}]},
        ):
            assert http.post("/v1/models/m:encode", json=wrong).status_code == 422
        csv = {"headers": {"content-type": "text/csv"}}
        said = http.post("/v1/models/m:encode", content=rows.to_csv(index=False), **csv)
        assert np.allclose(said.json()["values"], served.encode(rows), rtol=1e-3), "CSV has numbers as text"
        for content in (b"", b"a,b\n1,2\n", b"\x00" * 9):
            said = http.post("/v1/models/m:encode", content=content, **csv)
            assert said.status_code == 422 and "\n" not in said.json()["detail"]


def test_scores_are_explained_by_a_picture_where_it_is_asked_for(tmp_path: Path, server: Running) -> None:
    case = CASES["flow-table"]
    served, slot = calibrated_model(case), Slot("m", 9)
    slot.version = Version(served, 1, "", "")
    follower = Follower(Home.of(tmp_path), {}, 3600.0, "cpu", print)
    follower._thread.start()
    rows = served.sample(4, seed=1).to_dict("records")
    with TestClient(create_app({"m": slot}, follower, Limits())) as http:
        plain = http.post("/v1/models/m:score", json={"rows": rows}).json()
        said = http.post("/v1/models/m:score", json={"rows": rows, "explain": True}).json()
    assert base64.b64decode(said.pop("explained")).startswith(b"\x89PNG") and said == plain
    refused = server.http.post(f"{URL}:encode", content=b"a\n1\n", headers={"content-type": "text/csv"})
    assert refused.status_code == 422, "an image model takes no CSV"


def test_wrong_classes_and_rows_of_a_conditional_model_are_refused(tmp_path: Path) -> None:
    case = CASES["vae-whole"]
    served = ServedModel(case.build().float().requires_grad_(False), case.spec, ref="m/1")
    slot, follower = Slot("m", 9), Follower(Home.of(tmp_path), {}, 3600.0, "cpu", print)
    slot.version = Version(served, 1, "", "")
    follower._thread.start()
    rows = served.sample(2, seed=1, of_class=0)
    rows, z = rows.astype(object).where(rows.notna(), None).to_dict("records"), served.encode(rows, 0).tolist()
    with TestClient(create_app({"m": slot}, follower, LIMITS)) as http:
        for classes in ([], [0], [0, 1, 2]):
            for method, body in (("encode", {"rows": rows}), ("sample", {"count": 2}), ("decode", {"z": z})):
                said = http.post(f"/v1/models/m:{method}", json={**body, "class": classes})
                assert said.status_code == 422, (method, classes)
        said = http.post("/v1/models/m:encode", json={"rows": rows, "class": [0]})
        assert "1 classes for 2 examples" in said.json()["detail"]
        said = http.post("/v1/models/m:sample", json={"class": "of\ntwo lines"})
        assert said.status_code == 422 and "unknown class 'of two lines'" in said.json()["detail"]
        first = served.spec.columns[0].name
        for wrong in ({}, -(10**30), [1, [2]]):
            assert http.post("/v1/models/m:encode", json={"rows": [{**rows[0], first: wrong}], "class": 0}).status_code == 422
        many = [{**rows[0], **{f"{place} {number}": 1 for number in range(20)}} for place in range(5_000)]
        assert len(http.post("/v1/models/m:encode", json={"rows": many, "class": 0}).json()["values"]) == 5_000


def test_rows_are_scored_and_their_gaps_filled(tmp_path: Path) -> None:
    served = calibrated_model(CASES["vae-mixture"])
    slot, follower = Slot("m", 9), Follower(Home.of(tmp_path), {}, 3600.0, "cpu", print)
    slot.version = Version(served, 1, "", "")
    follower._thread.start()
    rows = served.sample(12, seed=1)
    rows.loc[0, "smokes"], rows.loc[[2, 5], "height"] = None, np.nan
    body = {"rows": rows.astype(object).where(rows.notna(), None).to_dict("records")}
    with TestClient(create_app({"m": slot}, follower, LIMITS)) as http:
        said = http.post("/v1/models/m:score", json={**body, "fdr": 0.2, "seed": 3}).json()
        expected = served.score(rows, fdr=0.2, seed=3)
        assert [row["p_value"] for row in said["values"]] == expected.p_value.tolist() and said["by"] == "combined"
        assert [row["flagged"] for row in said["values"]] == expected.flagged.tolist()
        assert said["notes"] == expected.summary.notes()
        said = http.post("/v1/models/m:impute", json={**body, "draws": 4}).json()
        found = served.impute(rows, draws=4)
        assert [row["smokes"] for row in said["values"]] == found.filled["smokes"].tolist()
        assert found.cells is not None and len(said["cells"]) == len(found.cells) == 3
    assert "score" in {request.method for request in canary.requests(served, None)}


@pytest.mark.slow
def test_a_canary_asks_each_method_of_a_family() -> None:
    for name, case in CASES.items():
        served = ServedModel(case.build().float().requires_grad_(False), case.spec, ref="m/1")
        said = canary.run(served, served, examples(case.spec, 3).numpy())
        asked = {request.method for request in canary.requests(served, None)}
        assert all(method in said for method in asked) and "3 held-out examples" in said, name
        assert ("encode" in asked) == ("latent" in case.settings.can)
    with pytest.raises(QueueFull):
        full = Slot("m", 0)
        full.version = Version(served, 1, "", "")
        full.ask(lambda version: next(canary.requests(version.served, None)))
