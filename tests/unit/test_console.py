"""Pages of the console over a real small registry: what they show, who may decide, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from remint.errors import SettingsError
from remint.promotion import decide
from remint.promotion.console import Registry
from remint.promotion.shadow import settings_of
from remint.records import Change, Drift, MetricValue, canonical
from remint.runtime.home import Home
from remint.serving.app import access, run
from remint.serving.app.limits import Limits
from remint.serving.console import chart, render
from remint.serving.console.source import Night, Outlook
from remint.serving.load import load_version
from remint.settings.params import LatestParams, Params, validate_params, write_params
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_serving_events, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.shadow_cases import record_waiting, waiting

pytestmark = pytest.mark.usefixtures("forked")
TOKEN, HEADER = "secret", "X-Remote-User"
ADA = {"authorization": f"Bearer {TOKEN}", HEADER: "Ada"}
PAGE = {"accept": "text/html"}


def params(**more: Any) -> Params:
    """Settings of one pipeline, and of one that nothing was registered of."""
    flow = {
        "dataset": "digits",
        "family": "flow",
        "model": {},
        "training": {},
        "evaluation": {"metrics": ["nll"]},
        "promotion": {"require": {"nll": {"max": 9.0}}, "improve": {"metric": "nll"}},
    }
    digits = {"source": "sklearn:digits", "kind": "image", "shape": [1, 8, 8], "levels": 17}
    return validate_params({"datasets": {"digits": digits}, "pipelines": {MODEL: flow, "digits-new": flow}, **more})


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    """Four versions: the first is the champion, the second is refused, the third awaits approval, the last is not judged."""
    home = cases.copy_home(registered, tmp_path / "home")
    for action, version in (("promoted", 1), ("refused", 2), ("awaiting_approval", 3)):
        cases.record_decision(home, action, version)  # type: ignore[arg-type]
    return home


class Running:
    """A server with its console in this process, whose follower looks when it is told to."""

    def __init__(self, home: Home, token: str | None = TOKEN, wait: bool = False, outlook: Outlook | None = None) -> None:
        self.source = Registry(home, params, lambda: {MODEL: outlook or Outlook()})
        pages = run.Pages(self.source, HEADER if token else None)
        refs = (MODEL, "digits-new") if wait else (MODEL,)
        self.app = run.build(run.Serving(home, refs, Limits(), 3600.0, "cpu", token, lambda _: None), pages, wait)
        api = next(route for route in self.app.app.routes if route.path == "/readyz").endpoint.__self__
        self.follower = api.follower
        self.http = TestClient(self.app, raise_server_exceptions=False, follow_redirects=False)

    def get(self, path: str, status: int = 200, **headers: str) -> str:
        answer = self.http.get(path, headers={**ADA, **PAGE, **headers})
        assert answer.status_code == status, answer.text
        return " ".join(answer.text.split())

    def post(self, path: str, headers: dict[str, str] = ADA, **form: str) -> Any:
        """Send a form of the page as it is now."""
        form = {"newest": open_ledger(self.source.home).head(MODEL), **form}
        return self.http.post(path, data=form, headers={"sec-fetch-site": "same-origin", **headers})


@pytest.fixture
def server(home: Home) -> Iterator[Running]:
    running = Running(home)
    with running.http:
        yield running


def test_the_overview_shows_each_pipeline_and_first_what_needs_a_person(home: Home) -> None:
    start = datetime.now(UTC) + timedelta(hours=5, minutes=1)
    running = Running(home, outlook=Outlook(start, "", "the run red-fox: no space left"))
    page = running.get("/")
    worry = page.index("Needs a person")
    assert (
        worry
        < page.index(f'<a href="/models/{MODEL}/3">{MODEL}/3</a> <span>it has waited for a decision since')
        < page.index("<dl>")
    )
    assert worry < page.index("run failed") < page.index("the run red-fox: no space left") < page.index("<dl>")
    assert f'<a href="/models/{MODEL}/1">{MODEL}/1</a> <span class="quiet">since just now' in page
    assert '<span class="verdict awaiting_approval">awaiting approval</span>' in page
    assert f"{start:%Y-%m-%d %H:%M} UTC" in page and "in 5 hours" in page
    card = page[page.index('<a href="/models/digits-new">') :]
    assert "none yet" in card and "never judged" in card and "no schedule" in card
    open_ledger(home).append(MODEL, "promoted", 4, champion_after=4, who="gate", why="", evidence="e", expected_champion=1)
    assert "has waited" not in running.get("/"), "it was judged against another champion"


def test_a_pipeline_that_is_added_to_the_settings_appears_at_once(home: Home, tmp_path: Path) -> None:
    first = params().model_dump(mode="json", exclude_none=True)
    write_params(first, tmp_path)
    source = Registry(home, LatestParams(tmp_path), dict)
    assert [entry.name for entry in source.overview()] == [MODEL, "digits-new"]
    pipelines = {**first["pipelines"], "digits-newest": first["pipelines"]["digits-new"]}
    pipelines[MODEL]["promotion"]["improve"] = {"metric": "fd_domain"}
    pipelines[MODEL]["evaluation"]["metrics"] = ["nll", "fd_domain"]
    write_params({**first, "pipelines": pipelines}, tmp_path)
    found = {entry.name: entry.metric for entry in source.overview()}
    assert found == {MODEL: "fd_domain", "digits-new": "nll", "digits-newest": "nll"}
    (tmp_path / "params.yaml").write_text("datasets: [")
    assert len(source.overview()) == 3, "a file with a mistake changes nothing"
    (tmp_path / "params.yaml").unlink()
    assert len(source.overview()) == 3


def test_a_version_that_the_server_refused_needs_a_person(home: Home, server: Running) -> None:
    open_serving_events(home).append(MODEL, "refused", 1, "host-7", "the canary's encode failed")
    assert "host-7 does not serve digits-flow/1: the canary&#39;s encode failed" in server.get("/")


@pytest.mark.parametrize("action", ["promoted", "awaiting_shadow"])
def test_the_page_of_a_model_says_what_this_server_refused_and_why(home: Home, server: Running, action: str) -> None:
    cases.flip_bit(home, 4)
    if action == "promoted":
        cases.append_row(home, "promoted", 4)
    else:
        record_waiting(home, waiting(4))
        server.follower.shadow_settings = settings_of
    server.follower.look(MODEL)
    page = server.get(f"/models/{MODEL}")
    assert "This server answers with version 1" in page and "It refused version 4, and tries again: " in page
    assert page.count("weights.safetensors") == 3, "there, in the event, and as what needs a person"


def test_each_host_that_does_not_serve_needs_a_person_until_it_does(home: Home, server: Running) -> None:
    events = open_serving_events(home)
    events.append(MODEL, "refused", 1, "host-7", "no memory")
    events.append(MODEL, "loaded", 1, "host-8", "it passed")
    assert "host-7 does not serve digits-flow/1: no memory" in server.get("/")
    events.append(MODEL, "loaded", 1, "host-7", "it passed")
    assert "does not serve" not in server.get("/")


def test_a_version_that_a_server_refused_as_a_shadow_needs_a_person(home: Home, server: Running) -> None:
    record_waiting(home, waiting(4))
    open_serving_events(home).append(MODEL, "refused", 4, "host-7", "as a shadow: its weights are damaged")
    assert "host-7 refused digits-flow/4 as a shadow: its weights are damaged" in server.get("/")
    open_serving_events(home).append(MODEL, "shadowed", 4, "host-7", "it passed")
    assert "as a shadow" not in server.get("/")


def test_data_that_drifted_need_a_person(home: Home, server: Running) -> None:
    change = Change(of="brightness", statistic="mean", before=0.3, after=0.5, change=1.0, low=0.9, high=1.1, p=1e-9)
    drift = Drift(former="a", present="b", comparable=True, summary="brightness rose", changed=(change,))
    home.report(MODEL, 3).mkdir(parents=True)
    drift.write(home.report(MODEL, 3) / "drift.json")
    page = server.get("/")
    assert "data drifted" in page and "brightness rose" in page


def test_a_damaged_ledger_row_is_named_and_the_other_pipelines_are_shown(home: Home, server: Running) -> None:
    cases.execute_sql(home, "UPDATE ledger SET why = 'edited' WHERE sequence = 3")
    page = server.get("/")
    assert "not readable" in page and "was changed outside remint" in page and 'href="/models/digits-new"' in page


@pytest.mark.parametrize("at", ["", "2026-05-01T00:00:00", "0001-01-01T00:00:00+14:00"])
@pytest.mark.parametrize("table", ["ledger", "serving_events"])
def test_a_damaged_time_is_named_and_everything_else_is_shown(home: Home, server: Running, table: str, at: str) -> None:
    cases.execute_sql(home, f"UPDATE {table} SET at = '{at}' WHERE sequence = 1")
    assert 'href="/models/digits-new"' in server.get("/") and "not readable" in server.get("/")
    page = server.get(f"/models/{MODEL}")
    assert "not readable" in page and "damaged" in page and f'<a href="/models/{MODEL}/4">' in page


def measurement(value: float, how: str = "a") -> MetricValue:
    return MetricValue(
        name="nll", value=value, low=value - 0.1, high=value + 0.1, n=9, seed=0, unit="bits/dim", fingerprint={"how": how}
    )


def test_a_chart_has_a_band_and_a_mark_for_each_verdict_and_joins_only_what_compares() -> None:
    verdicts = ["promoted", "kept", "refused", "awaiting_approval"]
    nights = [Night(n, f"2026-05-0{n}T03:00", verdict, {"nll": measurement(2 + n / 9)}) for n, verdict in enumerate(verdicts, 1)]
    drawn = str(chart.draw("m", "nll", nights))
    assert drawn.count('class="band"') == drawn.count('class="line"') == 1
    for night in nights:
        assert f'<a href="/models/m/{night.version}"' in drawn and f'class="mark {night.action}"' in drawn
    assert "m/3 refused 2026-05-03: 2.333 [2.233, 2.433] bits/dim" in drawn
    assert "2026-05-01" in drawn and "2026-05-04" in drawn
    others = [*nights, Night(5, "2026-05-05T03:00", "kept", {"nll": measurement(2.2, "b")})]
    assert str(chart.draw("m", "nll", others)).count('class="line"') == 2
    assert str(chart.draw("m", "other", nights)) == "" and str(chart.draw("m", "nll", [])) == ""
    heights = [float(place) for place in re.findall(r"translate\(\S+ (\S+)\)", drawn)]
    assert heights == sorted(heights, reverse=True), "a higher value is drawn higher"


def test_metrics_come_from_the_versions_and_are_read_once(home: Home, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (1, 2, 3):
        block = canonical({"nll": measurement(2.0 + version).to_json()})
        open_tracking(home).set_tags(open_tracking(home).version(f"{MODEL}/{version}"), VersionTags(metrics=block))
    monkeypatch.setattr("remint.promotion.console.SETTLED", timedelta(0))
    page = server.get("/")
    assert page.count("<figure>") == 1 and "digits-flow/2 refused" in page and "4.000 [3.900, 4.100] bits/dim" in page

    def away(*_: object) -> None:
        raise AssertionError("MLflow was asked again")

    with monkeypatch.context() as patched:
        patched.setattr("remint.promotion.console.open_tracking", away)
        assert server.get("/").count("<figure>") == 1
    cases.append_row(home, "refused", 3)
    server.source.refresh()
    with monkeypatch.context() as patched:
        patched.setattr("remint.promotion.console.open_tracking", away)
        server.source.refresh()
        assert "digits-flow/3 refused" in server.get("/"), "it was read beforehand"


def test_a_model_has_its_versions_decisions_and_serving_events(home: Home, server: Running) -> None:
    page = server.get(f"/models/{MODEL}")
    assert all(f'<a href="/models/{MODEL}/{version}">{MODEL}/{version}</a>' in page for version in (1, 2, 3, 4))
    rows = open_ledger(home).rows(MODEL)
    assert [page.index(row.hash) for row in rows] == sorted((page.index(row.hash) for row in rows), reverse=True)
    assert '<span class="verdict loaded">loaded</span>' in page and "drew its recorded samples" in page
    assert "This server answers with version 1" in page
    assert "unknown model" in server.get("/models/nothing", 404)


def test_the_ledger_is_verified_when_it_is_asked_for(home: Home, server: Running) -> None:
    assert "Verified: 3 rows" in server.get(f"/models/{MODEL}?verify=1") and "Verified" not in server.get(f"/models/{MODEL}")
    cases.execute_sql(home, "UPDATE ledger SET why = 'edited' WHERE sequence = 2", "UPDATE serving_events SET why = 'edited'")
    page = server.get(f"/models/{MODEL}?verify=1")
    assert "row 2 was changed: its hash does not match" in page and "serving event 1 was changed" in page


@pytest.mark.parametrize("table", ["ledger", "serving_events"])
def test_bytes_in_place_of_a_text_are_found(home: Home, server: Running, table: str) -> None:
    column = "who" if table == "ledger" else "host"
    cases.execute_sql(home, f"UPDATE {table} SET {column} = x'ff00' WHERE sequence = 1")
    page = server.get(f"/models/{MODEL}?verify=1")
    assert "The ledger does not verify" in page
    assert ("row 1 was changed: its hash does not match" if table == "ledger" else "serving event 1 was changed") in page


def test_a_verification_without_a_ledger_makes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "wrong")
    source = Registry(home, params, dict)
    assert source.verify(MODEL).rows == 0 and not (tmp_path / "wrong").exists()


def test_a_version_is_shown_beside_another_one(home: Home, server: Running) -> None:
    assert "training.seed: 0 -&gt; 2" in server.get(f"/models/{MODEL}/3"), "the champion before it"
    assert "training.seed: 1 -&gt; 2" in server.get(f"/models/{MODEL}/3?against=2")
    assert "has no version 77" in server.get(f"/models/{MODEL}/3?against=77", 404)
    assert "has no version 77" in server.get(f"/models/{MODEL}/77", 404)
    assert server.get(f"/models/{MODEL}/3?against=") == server.get(f"/models/{MODEL}/3"), "Compare with an empty field"
    for number in ("x", "-1", "9" * 4000, "9" * 5000):
        assert "there is no version" in server.get(f"/models/{MODEL}/3?against={number}", 404)
        assert "there is no version" in server.get(f"/models/{MODEL}/{number}", 404)


def test_a_report_is_shown_without_its_scripts(home: Home, server: Running) -> None:
    assert "has no report page" in server.get(f"/models/{MODEL}/1/report", 404)
    home.report(MODEL, 1).mkdir(parents=True)
    (home.report(MODEL, 1) / "report.html").write_text("<h1>Promoted</h1>")
    answer = server.http.get(f"/models/{MODEL}/1/report", headers=ADA)
    assert answer.text == "<h1>Promoted</h1>" and "sandbox" in answer.headers["content-security-policy"]
    (home.report(MODEL, 1) / "report.html").unlink()
    path = home.path / "report.html"
    path.write_text("<h1>from MLflow</h1>")
    open_tracking(home).attach(open_tracking(home).version(f"{MODEL}/1"), {"report.html": path})
    assert "from MLflow" in server.get(f"/models/{MODEL}/1/report")


def test_a_person_approves_rejects_and_rolls_back_as_by_the_commands(home: Home, server: Running) -> None:
    done = server.post(f"/models/{MODEL}/3", action="promote", reason="looked at the samples", against="1")
    assert done.status_code == 303 and done.headers["location"] == f"/models/{MODEL}/3#decisions"
    row = open_ledger(home).last(MODEL)
    assert (row.action, row.version, row.who, row.why) == ("promoted", 3, "Ada via console", "looked at the samples")
    assert open_tracking(home).version(f"{MODEL}@champion").version == 3 and server.follower.look(MODEL) is None
    assert "This server answers with version 3" in server.get(f"/models/{MODEL}")
    assert server.post(f"/models/{MODEL}/4", action="reject", reason="smears").status_code == 303
    assert open_ledger(home).last(MODEL).action == "rejected"
    assert server.post(f"/models/{MODEL}", reason="it blurs").status_code == 303
    row = open_ledger(home).last(MODEL)
    assert (row.action, row.champion_after, row.who) == ("rolled_back", 1, "Ada via console")


def seen(page: str) -> str:
    """Return the hash of the newest row that a page's form carries."""
    found = re.search('name="newest" value="([^"]*)"', page)
    assert found
    return found[1]


def test_a_page_from_before_another_decision_decides_nothing(home: Home, server: Running) -> None:
    """Ada looks at version 3. Bob promotes it, Carl rolls it back: the champion is the one that Ada saw."""
    old, old_model = seen(server.get(f"/models/{MODEL}/3")), seen(server.get(f"/models/{MODEL}"))
    assert old == old_model == open_ledger(home).head(MODEL)
    decide.promote(home, f"{MODEL}/3", "sharp", who="bob")
    decide.rollback(home, MODEL, "it blurs", who="carl")
    for path, form in (
        (f"/models/{MODEL}/3", {"action": "promote"}),
        (f"/models/{MODEL}/3", {"action": "reject"}),
        (f"/models/{MODEL}", {}),
    ):
        answer = server.post(path, reason="r", newest=old, **form)
        assert (
            answer.status_code == 409
            and "rolled back" in answer.text
            and "by carl: it blurs. It was decided meanwhile" in answer.text
        )
        assert server.http.post(path, data={"reason": "r", **form}, headers=ADA).status_code == 409, "no page was seen at all"
    assert open_ledger(home).last(MODEL).who == "carl"
    assert server.post(f"/models/{MODEL}/3", action="reject", reason="r", newest=seen(answer.text)).status_code == 303


def test_a_second_click_on_roll_back_goes_no_step_further(home: Home, server: Running) -> None:
    for version in (2, 3):
        cases.append_row(home, "promoted", version)
    old = seen(server.get(f"/models/{MODEL}"))
    assert server.post(f"/models/{MODEL}", reason="it blurs", newest=old).status_code == 303
    assert server.post(f"/models/{MODEL}", reason="it blurs", newest=old).status_code == 409
    assert open_ledger(home).champion(MODEL) == 2


def test_a_decision_while_the_bytes_are_verified_wins(home: Home, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = decide.verify

    def slowly(*given: Any, **more: Any) -> None:
        verify(*given, **more)
        monkeypatch.setattr(decide, "verify", verify)
        decide.reject(home, f"{MODEL}/3", "it blurs", who="carl")

    monkeypatch.setattr(decide, "verify", slowly)
    answer = server.post(f"/models/{MODEL}/3", action="promote", reason="r")
    assert answer.status_code == 409 and "rejected" in answer.text and open_ledger(home).champion(MODEL) == 1


REFUSED: dict[str, tuple[dict[str, str], int, str]] = {
    "another champion": ({"action": "promote", "reason": "r", "against": "2"}, 409, "Nothing was written"),
    "no reason": ({"action": "promote", "reason": "  "}, 422, "a decision needs a reason"),
    "an invisible reason": ({"action": "promote", "reason": "\u200b\u2060\ufe0f"}, 422, "a decision needs a reason"),
    "no action": ({"reason": "r"}, 422, "expected the action promote or reject"),
    "a long reason": ({"action": "reject", "reason": "r" * 2001}, 422, "at most 2,000 characters"),
    "a huge number": ({"action": "promote", "reason": "r", "against": "9" * 5000}, 422, "expected the number of a version"),
    "no number": ({"action": "promote", "reason": "r", "against": "x"}, 422, "expected the number of a version"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_decision_that_cannot_be_carried_out_says_why_and_writes_nothing(home: Home, server: Running, name: str) -> None:
    form, status, message = REFUSED[name]
    answer = server.post(f"/models/{MODEL}/3", **form)
    assert answer.status_code == status and message in answer.text and 'role="alert"' in answer.text
    assert len(open_ledger(home).rows(MODEL)) == 3


NOBODY: dict[str, Any] = {
    "no name": {"authorization": ADA["authorization"]},
    "two names": [("authorization", ADA["authorization"]), (HEADER, "Ada"), (HEADER, "Eve")],
    "an empty name": {**ADA, HEADER: " "},
    "an invisible name": {**ADA, HEADER: " \u200b\u2060\u3164 ".encode()},
}


@pytest.mark.parametrize("name", NOBODY)
def test_without_one_name_of_a_person_nothing_is_decided(home: Home, server: Running, name: str) -> None:
    page = server.http.get(f"/models/{MODEL}/3", headers=NOBODY[name]).text
    assert "<fieldset disabled>" in page and "These buttons are off" in page
    body = {"content": f"action=promote&reason=r&newest={open_ledger(home).head(MODEL)}", "headers": NOBODY[name]}
    for path in (f"/models/{MODEL}/3", f"/models/{MODEL}"):
        assert server.http.post(path, **body).status_code == 403
    assert len(open_ledger(home).rows(MODEL)) == 3
    assert "<fieldset>" in server.get(f"/models/{MODEL}/3") and "Ada" in server.get(f"/models/{MODEL}/3")


def test_a_server_without_a_token_believes_no_name(home: Home) -> None:
    running = Running(home, token=None)
    assert "<fieldset disabled>" in running.http.get(f"/models/{MODEL}/3", headers=ADA).text
    assert running.post(f"/models/{MODEL}/3", action="promote", reason="r").status_code == 403


@pytest.mark.parametrize(
    ("token", "header", "message"), [(None, HEADER, "set REMINT_SERVE_TOKEN too"), ("t", "a b", "name of a header")]
)
def test_settings_by_which_anybody_could_be_a_person_are_refused(token: str | None, header: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        access.check(token, header)


SITES: dict[str, tuple[dict[str, str], bool]] = {
    "the own page": ({"sec-fetch-site": "same-origin", "origin": "http://testserver"}, True),
    "a program": ({}, True),
    "an old browser, the own page": ({"origin": "http://testserver"}, True),
    "another site": ({"sec-fetch-site": "cross-site", "origin": "http://evil.example"}, False),
    "another port of this machine": ({"sec-fetch-site": "same-site", "origin": "http://testserver:99"}, False),
    "an old browser, another site": ({"origin": "http://evil.example"}, False),
    "a page without origin": ({"origin": "null"}, False),
    "no address": ({"origin": "http://[x"}, False),
}


@pytest.mark.parametrize("name", SITES)
def test_a_page_of_another_site_changes_nothing(home: Home, server: Running, name: str) -> None:
    headers, own = SITES[name]
    body = f"action=reject&reason=r&newest={open_ledger(home).head(MODEL)}"
    answer = server.http.post(f"/models/{MODEL}/3", content=body, headers={**ADA, **headers})
    assert answer.status_code == (303 if own else 403)
    assert len(open_ledger(home).rows(MODEL)) == (4 if own else 3)
    assert server.http.get("/", headers={**ADA, **headers}).status_code == 200


def test_a_browser_gives_the_token_once(server: Running) -> None:
    asked = server.http.get("/", headers=PAGE)
    assert asked.status_code == 303 and asked.headers["location"] == "/login"
    assert server.http.get("/v1/models").status_code == 401 and server.http.get("/login").status_code == 200
    assert server.http.get("/static/console.css").status_code == 200 and server.http.get("/static/../pages.py").status_code == 401
    assert server.http.get("/static/pages.py").status_code == 404
    assert server.http.get(f"/static/{'a' * 300}.css").status_code == 404
    wrong = server.http.post("/login", data={"token": "guess"})
    assert wrong.status_code == 401 and "That is not the token" in wrong.text and "set-cookie" not in wrong.headers
    right = server.http.post("/login", data={"token": TOKEN})
    cookie = right.headers["set-cookie"]
    assert right.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert server.http.get("/", headers=PAGE).status_code == 200, "the client sends the cookie now"
    assert server.http.post(f"/models/{MODEL}/3", content="action=reject&reason=r").status_code == 403, "the cookie has no name"
    server.http.cookies.set(access.COOKIE, access.cookie_of("another"))
    assert server.http.get("/", headers=PAGE).status_code == 303


@pytest.mark.parametrize("fields", [21, 9_000])
def test_a_form_is_small(home: Home, server: Running, fields: int) -> None:
    """Parsing 31 MiB of fields took the loop, and so every client, 15 seconds: nobody needs a token for it."""
    for path in ("/login", f"/models/{MODEL}/3", f"/models/{MODEL}"):
        answer = server.http.post(path, content="a=&" * fields, headers=ADA)
        assert answer.status_code == 413 and "\n" not in answer.text


def test_pages_fetch_nothing_from_elsewhere_and_text_from_outside_is_escaped(home: Home, server: Running) -> None:
    server.post(f"/models/{MODEL}/3", action="reject", reason="<script>alert(1)</script>")
    for path in ("/", f"/models/{MODEL}", f"/models/{MODEL}/3", f"/models/{MODEL}/playground", "/login"):
        answer = server.http.get(path, headers=ADA)
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' data:;")
        assert "<script>alert" not in answer.text
        assert not re.findall(r"""(?:src|href|action)=["'](?:\w+:)?//""", answer.text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in server.get(f"/models/{MODEL}/3")


def test_a_server_waits_for_the_first_champion_of_each_pipeline(registered: Home, tmp_path: Path) -> None:
    home = cases.copy_home(registered, tmp_path / "home")
    (home.path / "ledger.db").unlink(missing_ok=True)
    running = Running(home, token=None, wait=True)
    running.follower.stop()
    with running.http:
        assert "none yet" in running.get("/") and "Nothing is registered yet" in running.get(f"/models/{MODEL}")
        assert not (home.path / "ledger.db").exists(), "reading makes nothing"
        for name in (MODEL, "digits-new"):
            running.follower.look(name)
        assert "none yet" in running.get("/") and "has no version of it yet" in running.get("/models/digits-new/playground")
        assert running.http.get("/readyz").status_code == 200, "what does not exist is not waited for"
        cases.append_row(home, "promoted", 2)
        running.follower.look(MODEL)
        assert running.http.get(f"/v1/models/{MODEL}").json()["version"] == 2
        assert "digits-flow/2" in running.get(f"/models/{MODEL}/playground")


def test_a_challenger_is_loaded_when_it_is_asked_for(home: Home, server: Running) -> None:
    assert server.http.post(f"/challengers/{MODEL}:sample", json={}, headers=ADA).status_code == 404
    facts = server.http.get(f"/challengers/{MODEL}", headers=ADA).json()
    assert facts["ref"] == f"{MODEL}/3" and facts["shape"] == [1, 4, 4] and facts["can"] == ["latents", "impute", "log_prob"]
    said = server.http.post(f"/challengers/{MODEL}:sample", json={"count": 2, "seed": 7}, headers=ADA).json()
    assert said["version"] == 3 and said["values"] == load_version(home, f"{MODEL}/3").sample(2, 7).tolist()
    cases.append_row(home, "refused", 4)
    assert server.http.get(f"/challengers/{MODEL}", headers=ADA).json()["ref"] == f"{MODEL}/4"
    cases.append_row(home, "promoted", 4)
    refused = server.http.get(f"/challengers/{MODEL}", headers=ADA)
    assert refused.status_code == 404 and "has no challenger" in refused.json()["detail"]
    assert server.http.get("/challengers/nothing", headers=ADA).status_code == 404
    assert server.http.post(f"/challengers/{MODEL}:nothing", headers=ADA).status_code == 404


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (61, "1 minute ago"),
        (7200, "2 hours ago"),
        (86_400 * 3, "3 days ago"),
        (-90_000, "in 1 day"),
        (-5, "in a moment"),
    ],
)
def test_ages_are_told_in_words(seconds: int, text: str) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert render.age((now - timedelta(seconds=seconds)).isoformat(), now) == text
