"""Intervals by users: both databases, any log against its records, and against other libraries."""

import warnings
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.core import DataError
from llmops_kit.feedback.analyzer import FeedbackAnalyzer
from llmops_kit.feedback.clusters import (
    USERS_NEEDED,
    Clusters,
    effective_n,
    mean_limits,
    share_limits,
    sums_of,
    unseen_limit,
)
from llmops_kit.feedback.daily import daily_metrics
from llmops_kit.feedback.feedback_report import as_page, write_feedback_report
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.metrics import breakdown, calculate_metrics
from llmops_kit.feedback.per_user import CLUSTERED, UserReading, user_readings, user_sums
from llmops_kit.feedback.report_series import day_notes, few_users, gaps_of, report_series
from llmops_kit.feedback.report_words import in_short, label_table
from llmops_kit.feedback.schema import DAY
from llmops_kit.feedback.signals import signals_and_ratings, who_rates
from llmops_kit.feedback.windows import Window
from llmops_kit.stats import mean, proportion

START = datetime(2026, 11, 1, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(days=10))
TOPICS = (None, "", "billing", "'); DROP TABLE llm_interactions; --", "naïve 🙂 ‮")
FINDING = {"guard": "grounding", "kind": "unsupported", "start": 0, "end": 1, "score": 0.9}
SIGNS = ("thumbs_up", "thumbs_down", "stars", "regenerated", "abandoned", "faithfulness")


def asked(number: int, random: Any) -> Interaction:
    """An interaction of one of some users, of a session without a user, or of neither."""
    topic = TOPICS[number % 5]
    tags = {} if topic is None else {"topic": topic}
    if random.random() < 0.5:
        tags["checked"] = ("grounding", "pii,grounding,topic", "pii")[number % 3]
    return Interaction(
        f"r{number}",
        START + timedelta(hours=float(random.uniform(0, 239))),
        model=f"m{number % 2}",
        user=f"u{int(4 * random.pareto(1))}" if number % 4 else "",
        session=f"s{number % 6}" if number % 8 else "",
        cached=bool(random.random() < 0.2),
        blocked=bool(random.random() < 0.1),
        finish_reason="error" if random.random() < 0.1 else "stop",
        cost_usd=None if number % 7 == 0 else float(random.gamma(2, 0.001)),
        findings=[FINDING] * (number % 3 == 0),
        tags=tags,
    )


def thought(number: int, requests: int, random: Any) -> Feedback:
    """A feedback of any kind on any of the requests, some of it taken back."""
    kind, told = SIGNS[int(random.integers(len(SIGNS)))], dict[str, Any]()
    source = "implicit" if kind in ("regenerated", "abandoned") else "explicit"
    if kind == "stars":
        told = {"value": float(random.integers(1, 6))}
    elif kind == "faithfulness":
        source, told = "judge", {"value": float(random.random()), "judge": "j"}
    request, at = f"r{int(random.integers(requests))}", START + timedelta(minutes=number)
    return Feedback(
        f"f{number}", request, source, kind, at, retracted=bool(random.random() < 0.05), **told
    )


def filled(store: FeedbackStore, seed: int, size: int) -> None:
    """So many interactions, and half as much feedback."""
    random = np.random.default_rng(seed)
    store.write(asked(number, random) for number in range(size))
    store.write(thought(number, size, random) for number in range(size // 2))


def owner(one: Interaction) -> str:
    """Whose it is, from the record."""
    names = (("user", one.user), ("session", one.session), ("request", one.request_id))
    return next(f"{kind} {name}" for kind, name in names if name)


def facts(one: Interaction, said: list[Feedback]) -> dict[str, tuple[float, int]]:
    """(hits, observations) of one interaction for each metric, from its records."""
    kept = [sign for sign in said if not sign.retracted]
    rates = [f for f in kept if f.source == "explicit" and f.kind in SIGNS[:3]]
    newest = max(rates, key=lambda f: f.time, default=None)
    liked = newest is not None and (
        newest.kind == "thumbs_up" or (newest.kind == "stars" and (newest.value or 0) >= 4)
    )
    kinds = {f.kind for f in kept if f.source == "implicit"}
    judged = [f.value or 0.0 for f in kept if f.source == "judge"]
    checked = "grounding" in one.tags.get("checked", "").split(",") or bool(judged)
    doubted = bool(one.findings) or any(score < 0.5 for score in judged)
    rated, priced = newest is not None, one.cost_usd is not None
    return {
        "satisfaction_rate": (liked, rated),
        "response_rate": (rated, 1),
        "regeneration_rate": ("regenerated" in kinds, 1),
        "abandonment_rate": ("abandoned" in kinds, 1),
        "cached_share": (one.cached, 1),
        "blocked_rate": (one.blocked, 1),
        "hallucination_rate": (checked and doubted, checked),
        "error_rate": (one.finish_reason == "error", 1),
        "cost_per_request": (one.cost_usd or 0.0, priced),
    }


def by_hand(store: FeedbackStore, model: str | None = None) -> dict[str, dict[str, list[Any]]]:
    """Metric -> cluster -> [hits, observations], from the records alone."""
    found: dict[str, dict[str, list[Any]]] = {n: defaultdict(lambda: [0, 0]) for n in CLUSTERED}
    for one, said in store.read_with_feedback(WINDOW.since, WINDOW.until):
        if model in (None, one.model):
            for name, (hit, n) in facts(one, said).items():
                cell = found[name][owner(one)]
                cell[0], cell[1] = cell[0] + hit, cell[1] + n
    return found


def same(found: Clusters, cells: dict[str, list[Any]], name: str) -> None:
    """The sums of the query are those of the records."""
    rows = [(who, *cell) for who, cell in cells.items() if cell[1]]
    known = sums_of(*([row[k] for row in rows] for k in (1, 2, 0)))
    if name != "cost_per_request":
        assert found.most == known.most
        assert not rows or cells[found.heaviest][1] == found.most
        numbers = ("count", "n", "hits", "ww", "wh", "hh", "squares")
        assert all(getattr(found, one) == getattr(known, one) for one in numbers)
        return
    for part in ("count", "n", "hits", "ww", "wh", "hh"):
        assert getattr(found, part) == pytest.approx(getattr(known, part), rel=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_query_says_what_the_records_say(where: str, seed: int) -> None:
    store = FeedbackStore(where)
    filled(store, seed, 400)
    for model in (None, "m1"):
        chosen = None if model is None else {"model": model}
        found, known = user_sums(store, WINDOW, chosen)[0,], by_hand(store, model)
        for name in CLUSTERED:
            same(found[name], known[name], name)
        fast = calculate_metrics(store, WINDOW, chosen, 1)
        for name, one in user_readings(found, 1).items():
            assert one.n == fast[name].n
            exact = name != "cost_per_request"
            value = fast[name].value if exact else pytest.approx(fast[name].value, rel=1e-12)
            assert one.value == value
    store.close()


def test_labels_and_days_are_those_of_the_fast_way(where: str) -> None:
    store = FeedbackStore(where)
    filled(store, 3, 400)
    for label in ("tags.topic", "model", "cached", "failed"):
        fast = breakdown(store, WINDOW, label, min_n=1)
        found = {
            "" if k[1] is None else str(k[1]): v
            for k, v in user_sums(store, WINDOW, by=[label]).items()
        }
        assert found.keys() == fast.keys()
        assert all(found[of]["error_rate"].n == fast[of]["error_rate"].n for of in fast)
    days, steps = daily_metrics(store, WINDOW, min_n=1), user_sums(store, WINDOW, step=DAY)
    first = int(WINDOW.since.timestamp()) * 1_000_000 // DAY
    for place, n in enumerate(days["satisfaction_rate_n"]):
        assert steps[(first + place,)]["satisfaction_rate"].n == n
    both = user_sums(store, WINDOW, by=["model"], step=DAY)
    assert sum(one["error_rate"].n for one in both.values()) == 400
    store.close()


def test_both_databases_give_the_same_readings(postgres: str, tmp_path: Path) -> None:
    seen = []
    for place in (tmp_path / "f.sqlite", postgres):
        store = FeedbackStore(place)
        filled(store, 5, 500)
        found = FeedbackAnalyzer(store, min_n=10).calculate_metrics(WINDOW).values()
        tables = signals_and_ratings(store, WINDOW, min_n=5), who_rates(store, WINDOW, min_n=5)
        seen.append((pd.DataFrame(one.to_dict() for one in found), *tables))
        store.close()
    assert set(CLUSTERED) <= set(seen[0][0].dropna().name)
    assert all(table["low"].notna().sum() >= 2 for table in seen[0])
    for one, other in zip(*seen, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-9)


sizes = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=40)


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_the_variance_is_that_of_the_kits_cluster_mean(pairs: list[tuple[int, int]]) -> None:
    rows = [(min(k, n), n) for k, n in pairs if n]
    if len(rows) < 2:
        return
    one = sums_of(*([row[k] for row in rows] for k in (0, 1)))
    who = np.repeat(np.arange(len(rows)), [n for _, n in rows])
    values = np.concatenate([np.repeat([1.0, 0.0], [k, n - k]) for k, n in rows])
    if one.n > len(rows) and 0 < one.hits < one.n:
        known = mean(values, clusters=who.tolist()).se
        assert one.variance**0.5 == pytest.approx(known, rel=1e-7, abs=1e-9)
    assert 1 <= one.effective <= len(rows) + 1e-9


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_share_and_is_never_narrower(pairs: list[tuple[int, int]]) -> None:
    rows = [(min(k, n), n) for k, n in pairs if n]
    one = sums_of([k for k, _ in rows], [n for _, n in rows])
    if one.effective < USERS_NEEDED:
        return
    low, high = share_limits(one)
    plain = proportion(int(one.hits), one.n)
    assert 0 <= low <= one.hits / one.n <= high <= 1
    assert high - low >= (plain.high - plain.low) * (1 - 1e-9)
    assert effective_n(one.n, one.design_effect, one.effective) <= one.n * (1 + 1e-9)


@given(st.integers(30, 400), st.data())
@settings(max_examples=40, deadline=None)
def test_requests_of_nobody_have_the_naive_interval(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    one = sums_of([1] * hits + [0] * (n - hits), [1] * n)
    plain = proportion(hits, n)
    assert share_limits(one) == pytest.approx((plain.low, plain.high), abs=1e-12)


@given(sizes, st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_copies_of_each_rating_add_nothing(pairs: list[tuple[int, int]], times: int) -> None:
    rows = [(min(k, n), n) for k, n in pairs if n]
    one = sums_of([k for k, _ in rows], [n for _, n in rows])
    if one.count < 2:
        return
    many = sums_of([k * times for k, _ in rows], [n * times for _, n in rows])
    assert many.variance == pytest.approx(one.variance)
    assert many.effective == pytest.approx(one.effective)


def test_the_sums_of_a_billion_requests_are_exact() -> None:
    big = Clusters(1000, 10**9, 5 * 10**8, 10**15, 5 * 10**14, 25 * 10**13 + 10**6, 5 * 10**8)
    assert big.variance == pytest.approx(1000 / 999 * 10**6 / 10**18, rel=1e-9)


def test_few_users_and_a_heavy_one_are_put_into_words() -> None:
    few = sums_of([50, 40, 60], [100, 100, 100], ["user a", "user b", "user c"])
    told = user_readings({"satisfaction_rate": few})["satisfaction_rate"]
    plain = proportion(150, 300)
    assert (told.value, told.n, told.by, told.design_effect) == (0.5, 300, "requests", None)
    assert (told.low, told.high) == pytest.approx((plain.low, plain.high))
    assert "all 300 rated are of 3 users, who weigh as 3.0 equal ones" in told.note
    names = ["user bot"] + [f"user {n}" for n in range(99)]
    heavy = sums_of([70, *[2] * 99], [100, *[3] * 99], names)
    seen = user_readings({"satisfaction_rate": heavy})["satisfaction_rate"]
    assert seen.value is not None and seen.heaviest == "user bot"
    assert seen.note == "user bot has 25.2 % of all 397 rated"
    assert user_readings({})["error_rate"].note == "not enough data: 0 requests, 30 are needed"


def test_a_report_names_a_user_who_outweighs_the_others(tmp_path: Path) -> None:
    store, rows = FeedbackStore(tmp_path / "f.sqlite"), list[Interaction | Feedback]()
    for number in range(400):
        user = "bot" if number % 4 == 0 else f"u{number}"
        at = START + timedelta(hours=number / 2)
        rows.append(Interaction(f"r{number}", at, user=user, prompt="Hi", response="Hello"))
        rows.append(Feedback(f"f{number}", f"r{number}", "explicit", "thumbs_up", at))
    store.write(rows)
    report = FeedbackAnalyzer(store).report(WINDOW, by=["model"])
    told = next(one for one in report.remarks if one.startswith("Satisfaction: "))
    assert "; all 400 rated had it; users who never have it may still be up to" in told
    assert "user bot has 25.0 % of all 400 rated" in told
    table = report.table().set_index("name")
    assert table.loc["satisfaction_rate", "design_effect"] == 1.0
    assert np.isnan(table.loc["latency_p50", "design_effect"])
    label = report.breakdowns["model"][""]["satisfaction_rate"]
    assert label == report.metrics["satisfaction_rate"]
    assert report.daily["satisfaction_rate"].notna().sum() == 8
    store.close()


def test_one_user_and_three_have_the_intervals_of_their_requests(where: str) -> None:
    """What the dashboard shows, with a name for it; a single rating too, if one insists."""
    store, rows = FeedbackStore(where), list[Interaction | Feedback]()
    for number in range(300):
        at, user = START + timedelta(hours=number / 2), f"u{number % 3}"
        cost = 0.001 * (1 + number % 5)
        rows.append(Interaction(f"r{number}", at, user=user, cost_usd=cost, tags={"topic": user}))
        if number % 2:
            kind = "thumbs_down" if number % 7 == 0 else "thumbs_up"
            rows.append(Feedback(f"f{number}", f"r{number}", "explicit", kind, at))
    store.write(rows)
    for chosen in (None, {"user": "u1"}, {"request_id": "r1"}):
        found = FeedbackAnalyzer(store, min_n=1).calculate_metrics(WINDOW, chosen)
        fast = calculate_metrics(store, WINDOW, chosen, 1)
        for name in CLUSTERED:
            one, other = found[name], fast[name]
            assert isinstance(one, UserReading) and one.by in ("requests", "")
            assert (one.value is None) == (other.value is None)
            if one.value is not None:
                assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-9)
    store.close()


def test_hostile_names_and_filters_are_values(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    names = ["'; DROP TABLE llm_interactions; --", "<script>", "%", "_", 'x"y', "user u1"]
    store.write(Interaction(f"r{n}", START, user=names[n % 6]) for n in range(60))
    store.write(Interaction(f"s{n}", START, session=names[n % 6]) for n in range(60))
    found = user_sums(store, WINDOW)[0,]["error_rate"]
    assert (found.count, found.n, found.most) == (12, 120, 10)
    assert user_sums(store, WINDOW, {"user": names[0]})[0,]["error_rate"].count == 1
    with pytest.raises(DataError, match="no filter 'colour'"):
        user_sums(store, WINDOW, {"colour": "red"})
    assert store.count(Interaction) == 120
    store.close()


def test_a_signal_of_one_loud_user_is_no_finding(tmp_path: Path) -> None:
    store, rows = FeedbackStore(tmp_path / "f.sqlite"), list[Interaction | Feedback]()
    for number in range(600):
        loud = number % 3 == 0  # rates everything badly, and copies everything
        at = START + timedelta(minutes=number)
        rows.append(Interaction(f"r{number}", at, user="loud" if loud else f"u{number % 90}"))
        kind = "thumbs_down" if loud or number % 10 == 1 else "thumbs_up"
        rows.append(Feedback(f"f{number}", f"r{number}", "explicit", kind, at))
        if loud or number % 7 == 1:
            rows.append(Feedback(f"c{number}", f"r{number}", "implicit", "copied", at))
    store.write(rows)
    verdict = signals_and_ratings(store, WINDOW).loc["copied", "verdict"]
    assert verdict.startswith("not enough data: as ")
    store.close()


def test_an_interval_says_what_it_counts(where: str) -> None:
    """Users, sessions in their place, requests of nobody; and how many of these there are."""
    store = FeedbackStore(where)
    kinds = {"user": ("u", ""), "session": ("", "s"), "nobody": ("", ""), "mixed": ("u", "s")}
    for model, (user, session) in kinds.items():
        store.write(
            Interaction(
                f"{model}{number}",
                START,
                model=model,
                user=f"{user}{number % 20}" if user and (number % 2 or model == "user") else "",
                session=f"{session}{number % 30}" if session else "",
            )
            for number in range(60)
        )
    found = {
        key[1]: user_readings(one)["error_rate"]
        for key, one in user_sums(store, WINDOW, by=["model"]).items()
    }
    told = {model: (one.by, one.users, one.unnamed) for model, one in found.items()}
    assert told == {
        "user": ("users", 20, 0),
        "session": ("sessions", 30, 60),
        "nobody": ("requests", 60, 60),
        "mixed": ("users", 25, 30),
    }
    assert not found["nobody"].note and "up to" in found["session"].note
    store.close()


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_observations_taken_apart_are_independent_ones(pairs: list[tuple[int, int]]) -> None:
    rows = [(min(k, n), n) for k, n in pairs if n]
    one = sums_of([k for k, _ in rows], [n for _, n in rows])
    if one.n < 2:
        return
    apart, plain = one.apart, proportion(int(one.hits), one.n)
    assert share_limits(apart) == pytest.approx((plain.low, plain.high), abs=1e-12)
    assert apart.variance == pytest.approx(one.naive_variance, rel=1e-9, abs=1e-15)
    assert (apart.effective, apart.design_effect) == (pytest.approx(one.n), pytest.approx(1.0))
    low, high = mean_limits(apart)
    assert low <= one.hits / one.n <= high


def test_what_nobody_had_is_bounded_by_users() -> None:
    """In whatever way the requests of sixty users lie, and as tight as none of so many."""
    for each in (1, 5, 500):
        one = sums_of([0] * 60, [each] * 60)
        assert unseen_limit(one) == pytest.approx(proportion(0, 60).high)
        assert share_limits(one)[1] <= unseen_limit(one) + 1e-12
    giant = sums_of([0] * 60, [1] * 59 + [500])
    assert unseen_limit(giant) > 0.7
    seen = user_readings({"blocked_rate": sums_of([0] * 60, [20] * 60)})["blocked_rate"]
    assert seen.note.startswith("none of 1,200 requests had it; users who always have it")
    assert not user_readings({"blocked_rate": sums_of([1] * 60, [20] * 60)})["blocked_rate"].note


def test_all_bad_on_both_sides_is_no_difference(tmp_path: Path) -> None:
    """Two shares of 1, where the limits of a ratio come out as complex numbers."""
    store, rows = FeedbackStore(tmp_path / "f.sqlite"), list[Interaction | Feedback]()
    for number in range(520):
        rows.append(Interaction(f"r{number}", START, user=f"u{number}"))
        rows.append(Feedback(f"f{number}", f"r{number}", "explicit", "thumbs_down", START))
        if number < 35:
            rows.append(Feedback(f"c{number}", f"r{number}", "implicit", "copied", START))
    store.write(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = signals_and_ratings(store, WINDOW).loc["copied"]
    assert (row["difference"], row["ratio"], row["verdict"]) == (0, 1, "no difference shown")
    assert row["ratio_low"] == pytest.approx(1.0, abs=1e-3)
    store.close()


def test_a_report_tells_weeks_where_days_have_too_little(tmp_path: Path) -> None:
    """Ten ratings a day: no day has a satisfaction, both whole weeks have; the page says so."""
    store, rows = FeedbackStore(tmp_path / "f.sqlite"), list[Interaction | Feedback]()
    for number in range(17 * 40):
        at = START + timedelta(minutes=36 * number)
        rows.append(Interaction(f"r{number}", at, "Hi", user=f"u{number % 50}", latency_ms=900.0))
        if number % 4 == 0:
            rows.append(Feedback(f"f{number}", f"r{number}", "explicit", "thumbs_up", at))
    store.write(rows)
    report = FeedbackAnalyzer(store).report(Window(START, START + timedelta(days=17)), by=[])
    steps = {one.name: one.step for one in report_series(report)}
    assert (steps["satisfaction_rate"], steps["latency_p99"]) == ("week", "day")
    weeks = report.weekly
    assert weeks.time.tolist() == [pd.Timestamp(START + timedelta(days=d)) for d in (3, 10)]
    assert weeks.satisfaction_rate_n.tolist() == [70, 70]
    assert set(weeks.columns) >= set(report.daily.columns)
    few = "No day has the 30 rated that a value needs: each has 10."
    told = f"{few} The chart is by week."
    assert f"Satisfaction: {told}" in day_notes(report)
    fast = daily_metrics(store, WINDOW)
    assert gaps_of("satisfaction_rate", fast) == few
    assert gaps_of("latency_p50", fast) == ""
    paths = write_feedback_report(report, tmp_path / "out")
    assert len(pd.read_csv(paths["weekly"])) == 2
    page = paths["html"].read_text()
    assert told in page and "In short" in page
    short = FeedbackAnalyzer(store).report(Window(START, START + timedelta(days=5)), by=[])
    assert short.weekly.empty and {one.step for one in report_series(short)} == {"day"}
    assert "<svg" in as_page(short)
    store.close()


def test_a_day_of_two_users_is_hollow_and_a_thin_label_has_a_star(tmp_path: Path) -> None:
    """By requests among what is by users: marked in the drawing, in the table and in words."""
    store, rows = FeedbackStore(tmp_path / "f.sqlite"), list[Interaction]()
    for number in range(10 * 60):
        day, user = divmod(number, 60)
        who = f"u{user % 2 if day == 4 else user % 40}"
        topic = "rare" if user % 40 < 2 else "usual"
        at, tags = START + timedelta(days=day, minutes=user), {"topic": topic}
        rows.append(Interaction(f"r{number}", at, "Hi", user=who, cost_usd=0.001, tags=tags))
    store.write(rows)
    report = FeedbackAnalyzer(store).report(WINDOW, by=["tags.topic"])
    by = report.daily.blocked_rate_by.tolist()
    assert by == ["users"] * 4 + ["requests"] + ["users"] * 5
    assert few_users(report) and "Hollow" in as_page(report)
    table = label_table(report, "tags.topic")
    assert table.loc["rare", "Blocked"].endswith(" *")
    assert not table.loc["usual", "Blocked"].endswith("*")
    few = FeedbackAnalyzer(store).report(WINDOW, {"user": ["u0", "u1"]}, by=["tags.topic"])
    assert not few_users(few) and " *" not in label_table(few, "tags.topic").to_string()
    store.close()


def test_a_page_of_hostile_labels_and_filters_is_text(tmp_path: Path) -> None:
    store, evil = FeedbackStore(tmp_path / "f.sqlite"), "<img src=x onerror=alert(1)> & \u202e"
    store.write(
        Interaction(f"r{n}", START, evil, user=evil, model=evil, tags={"<b>x": evil})
        for n in range(40)
    )
    where = {"model": [evil, "other"], "user": evil}
    report = FeedbackAnalyzer(store).report(WINDOW, where, by=["model", "tags.<b>x"])
    page = as_page(report, title=evil)
    assert "<img" not in page and "<b>" not in page
    assert "&lt;img" in page and " or other" in page
    store.close()


def test_a_report_says_who_is_named_and_of_what_the_alerts_are(tmp_path: Path) -> None:
    """Few users beside nameless requests are users; and the rules look at all requests."""
    store = FeedbackStore(tmp_path / "f.sqlite")
    at = [START + timedelta(minutes=n) for n in range(120)]
    store.write(
        Interaction(f"r{n}", at[n], user="ann" if n % 3 else "", model=f"m{n % 2}", cost_usd=1.0)
        for n in range(120)
    )
    whole = FeedbackAnalyzer(store).report(WINDOW, by=[])
    told = " ".join(whole.remarks)
    assert "No request names a user" not in told
    assert "40 of 120 requests name no user" in told
    part = FeedbackAnalyzer(store).report(WINDOW, {"model": "m1"}, by=[])
    assert whole.alerts == part.alerts != []
    for report, said in ((whole, False), (part, True)):
        assert ("all requests" in in_short(report)[2]) == said
        assert ("look at all requests, whatever" in as_page(report)) == said
