"""What the store's chapters cannot show: kill -9, other processes, a real PostgreSQL, faults."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import bounded
from sqlalchemy import text

from llmops_kit.core import DataError, StoreError
from llmops_kit.feedback import erase, schema, upgrades
from llmops_kit.feedback.database import Database
from llmops_kit.feedback.feedback_store import FeedbackStore, Written
from llmops_kit.feedback.interactions import (
    Feedback,
    Interaction,
    as_utc,
    hash_user,
    new_id,
    utc_now,
    word_diff,
)

START = datetime(2026, 11, 1, tzinfo=UTC)


def interaction(number: int, **fields: object) -> Interaction:
    told = {"time": START + timedelta(seconds=number), "prompt": f"question {number}", **fields}
    return Interaction(f"r{number:06d}", **told)  # type: ignore[arg-type]


def thumb(name: str, seconds: float, kind: str = "thumbs_up", **fields: object) -> Feedback:
    at = START + timedelta(seconds=seconds)
    return Feedback(name, "r000001", "explicit", kind, at, **fields)  # type: ignore[arg-type]


def test_rows_come_back_as_they_went_in(where: str) -> None:
    store = FeedbackStore(where)
    full = interaction(
        1,
        response="a\0b \ud800 \u202e <script>'; DROP TABLE llm_interactions; --",
        model="m",
        session="s",
        user="u" * 32,
        versions={"prompt": "p1", 'quo"te': "x"},
        chunk_ids=["a.md:0-9"],
        findings=[{"guard": "pii", "score": 0.5}],
        cached=True,
        blocked=True,
        input_tokens=2**40,
        cost_usd=1e-9,
        latency_ms=0.1 + 0.2,
        ttft_ms=3.0,
        error="e" * 10**6,
        tags={"topic": "a", "naïve": "ü"},
    )
    said = thumb(
        "f1", 5, "correction", text="better \0", data={"deep": [1, {"x": None}], "n": 1e300}
    )
    assert store.write([said, full]) == Written(new=2)  # the feedback comes before its interaction
    assert store.write([full, said, full]) == Written(same=3)
    assert list(store.read(Interaction)) == [full]
    assert store.get(Feedback, ["f1", "none"]) == {"f1": said}
    assert list(store.read_with_feedback()) == [(full, [said])]
    assert full.response.startswith("a\u2400b \ufffd")
    store.close()


def test_windows_and_filters(where: str) -> None:
    store = FeedbackStore(where)
    rows = [
        interaction(n, model=f"m{n % 3}", tags={"topic": f"t{n % 2}"}, error="x" * (n % 5 == 0))
        for n in range(2500)
    ]
    store.write(reversed(rows))
    assert list(store.read(Interaction)) == rows
    assert list(store.read(Interaction, newest=True, limit=1200)) == rows[::-1][:1200]
    since = "2026-11-01T01:01:40+01:00"  # 100 seconds after the start
    assert list(store.read(Interaction, since, START + timedelta(seconds=200))) == rows[100:200]
    assert store.count(Interaction, since) == 2400
    for wanted, expected in [
        ({"model": "m1"}, [r for r in rows if r.model == "m1"]),
        ({"model": ["m1", "m2"]}, [r for r in rows if r.model != "m0"]),
        ({"tags.topic": "t1"}, [r for r in rows if r.tags["topic"] == "t1"]),
        ({"tags.topic": ["t0", "t1"], "failed": True}, [r for r in rows if r.error]),
        ({"tags.none": "t1"}, []),
        ({"model": "' OR 1=1 --"}, []),
        ({"model": []}, []),
    ]:
        assert list(store.read(Interaction, where=wanted)) == expected, wanted
        assert store.count(Interaction, where=wanted) == len(expected)
    for wrong in ({"prompt": "x"}, {"model; DROP": 1}, {'tags.a"b': "x"}, {"": 1}):
        with pytest.raises(DataError, match="there is no filter"):
            store.count(Interaction, where=wrong)
    with pytest.raises(DataError, match="no time zone"):
        store.count(Interaction, datetime(2026, 11, 1))
    store.close()


VERSIONS = [thumb("f", n, kind) for n, kind in enumerate(("thumbs_up", "thumbs_down", "copied"))]
VERSIONS.append(replace(VERSIONS[-1], retracted=True, time=START + timedelta(seconds=9)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
def test_any_order_and_any_repetition_end_alike(order: tuple[int, ...], tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    for number in (*order, *order[:2]):
        store.write([VERSIONS[number]])
    assert store.get(Feedback, ["f"])["f"] == VERSIONS[-1]
    assert store.versions(Feedback, "f") == VERSIONS
    assert list(store.read(Feedback)) == []
    assert list(store.read(Feedback, where={"retracted": True})) == VERSIONS[-1:]


def test_a_changed_mind_and_a_retraction(where: str) -> None:
    store = FeedbackStore(where)
    assert store.write([thumb("f", 1), thumb("f", 2, "thumbs_down")]) == Written(1, 0, 1)
    assert store.write([thumb("f", 1)]) == Written(same=1)  # sent again, late
    assert [one.kind for one in store.feedback_of(["r000001"])["r000001"]] == ["thumbs_down"]
    store.retract("f")
    assert store.feedback_of(["r000001"]) == {}
    assert [one.retracted for one in store.versions(Feedback, "f")] == [False, False, True]
    with pytest.raises(DataError, match="there is no feedback 'g'"):
        store.retract("g")
    store.close()


def test_a_rating_from_a_clock_that_is_ahead_can_be_taken_back(where: str) -> None:
    store = FeedbackStore(where)
    store.write([replace(thumb("f", 0), time=utc_now() + timedelta(hours=1))])
    store.retract("f")
    assert store.get(Feedback, ["f"])["f"].retracted
    assert store.feedback_of(["r000001"]) == {}
    store.close()


def test_a_record_that_was_changed_is_named(where: str) -> None:
    store = FeedbackStore(where)
    for name, wrong in (("tags", {"a": object()}), ("prompt", "\ud800"), ("input_tokens", 2**70)):
        changed = interaction(7)
        setattr(changed, name, wrong)
        with pytest.raises(DataError, match="Interaction 'r000007': it cannot be kept as it is"):
            store.write([interaction(6), changed])
    assert store.count(Interaction) == 0
    store.close()


def test_names_of_the_greatest_length_fit_every_index(where: str) -> None:
    store, names = FeedbackStore(where), itertools.count(0x10000)
    wild = ["".join(chr(next(names)) for _ in range(200)) for _ in range(9)]
    asked = Interaction(wild[0], START, "", "", *wild[1:4], finish_reason=wild[4])
    said = Feedback(wild[5], wild[0], "judge", *wild[6:7], START, category=wild[7], judge=wild[8])
    assert store.write([asked, said]) == Written(new=2)
    assert list(store.read_with_feedback()) == [(asked, [said])]
    store.close()


def test_ids_that_no_database_holds_are_looked_up_as_they_are_kept(where: str) -> None:
    store, odd = FeedbackStore(where), "r\0\ud800"
    asked, said = (
        Interaction(odd, START, user=odd, tags={odd: odd}),
        Feedback(odd, odd, "explicit", "comment", START),
    )
    store.write([asked, said])
    for wanted in (odd, [odd]):
        chosen = {"user": wanted, f"tags.{odd}": wanted}
        assert store.count(Interaction, where=chosen) == 1
    assert store.get(Interaction, [odd]) == {asked.request_id: asked}
    assert store.feedback_of([odd]) == {asked.request_id: [said]}
    store.retract(odd)
    assert [one.retracted for one in store.versions(Feedback, odd)] == [False, True]
    assert store.erase_user(odd).interactions == 1
    assert store.get(Interaction, [odd]) == {} == store.get(Feedback, [odd])
    store.close()


def test_an_erasure_tells_when_a_reader_keeps_the_text(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    store = FeedbackStore(path, timeout_s=0.1)
    store.write([interaction(n, response="mark-of-ann", user="u") for n in range(20)])
    store.close()
    with Database(path).reading() as connection:
        connection.execute(text("SELECT count(*) FROM llm_interactions")).all()
        with pytest.raises(StoreError, match="erased, but still in the file"):
            store.erase_user("u")
        assert store.count(Interaction) == 0  # nobody else finds it
        assert on_disk(str(path), "mark-of-ann")
    assert store.erase_user("u") == erase.Erased()
    assert not on_disk(str(path), "mark-of-ann")
    store.close()


def on_disk(where: str, word: str) -> bool:
    """Whether a word stands in a file of the SQLite database."""
    paths = (Path(where + end) for end in ("", "-wal"))
    return any(word.encode() in path.read_bytes() for path in paths if path.exists())


def test_erased_rows_are_gone(where: str) -> None:
    store = FeedbackStore(where)
    users = ("ann", "ben")
    rows = [interaction(n, user=users[n % 2], response=f"secret{n % 2} {n}") for n in range(1200)]
    store.write(rows)
    store.write(replace(row, response=row.response + " revised") for row in rows[:10])
    store.write([thumb("a", 1, user="ben", comment="secret1"), thumb("c", 1, comment="of nobody")])
    lone = Feedback("d", "r9", "explicit", "comment", START, user="ann", comment="secret0")
    store.write([lone, replace(lone, user="", comment="", time=START + timedelta(seconds=1))])
    gone = store.erase_user("ann")
    assert (gone.interactions, gone.feedback, gone.versions) == (600, 0, 6)
    assert store.count(Interaction) == 600
    if store.database.sqlite:
        assert not on_disk(where, "secret0")
        assert on_disk(where, "secret1")
    assert store.erase_user("ann").interactions == 0
    gone = store.erase_before(START + timedelta(seconds=100))
    assert (gone.interactions, gone.feedback, gone.versions) == (50, 3, 5)
    with store.reading() as connection:
        left = connection.execute(text("SELECT count(*) FROM llm_history")).scalar()
    assert left == 0
    assert min(one.time for one in store.read(Interaction)) >= START + timedelta(seconds=100)
    for wrong in ("", "2026-11-01"):
        with pytest.raises(DataError):
            store.erase_before(wrong) if wrong else store.erase_user(wrong)
    store.close()


def test_a_plain_name_is_not_said_to_be_erased(where: str) -> None:
    store = FeedbackStore(where)
    hashed = hash_user("ann", "key")
    store.write([interaction(1, user=hashed), interaction(2, user="bo")])
    for name in ("ann", "ANN", hashed.upper()):
        with pytest.raises(DataError, match=r"hash_user\(name, key\)"):
            store.erase_user(name)
    assert store.write([interaction(3, user="ann")]) == Written(new=1)  # nothing keeps it out
    assert store.erase_user("ann") == store.erase_user("bo") == erase.Erased(1)
    assert store.erase_user("bo") == erase.Erased()  # it was here
    assert store.erase_user(hashed) == erase.Erased(1)
    assert store.erase_user(hash_user("cem", "key")) == erase.Erased()
    store.close()


NOW = as_utc("2026-11-20T12:00:00Z")
ANN = "a" * 32  # a hash: a plain name is refused where no row has it


def old_log() -> list[Interaction | Feedback]:
    """What two users asked and said, and a judge's scores, before any erasure."""
    log = [interaction(n, user=(ANN, "ben")[n % 2], response="mark") for n in range(40)]
    said = [
        Feedback(f"f{n}", f"r{n:06d}", "explicit", "comment", START, user="ben", comment="mark")
        for n in range(0, 40, 4)
    ]
    names = ("r000002", "r000003")
    scores = [Feedback(f"j{n[-1]}", n, "judge", "tone", START, 0.5, judge="j") for n in names]
    return [*log, *said, *scores]


def erase_at(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch, at: datetime = NOW) -> None:
    monkeypatch.setattr(erase, "utc_now", lambda: at)
    store.erase_user(ANN)


def test_what_was_erased_does_not_come_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, log = FeedbackStore(where), old_log()
    store.write(log)
    erase_at(store, monkeypatch)
    for order in (log, log[::-1]):
        assert store.write(order) == Written(same=21, erased=31)
    anonymous = [replace(one, user="") for one in log if isinstance(one, Interaction)]
    assert store.write(anonymous[::2]) == Written(erased=20)
    assert (store.count(Interaction), store.count(Feedback)) == (20, 1)
    late, exact = (interaction(n, user=ANN, time=NOW + timedelta(microseconds=n)) for n in (9, 0))
    fresh = replace(late, request_id="new")
    assert store.write([fresh, replace(exact, request_id="exact")]) == Written(new=1, erased=1)
    own = Feedback("own", "new", "explicit", "thumbs_up", fresh.time, user=ANN)
    assert store.write([own]) == Written(new=1)
    erase_at(store, monkeypatch, NOW + timedelta(days=1))
    assert store.write([fresh, own, log[1]]) == Written(same=1, erased=2)
    store.close()


def test_a_record_that_never_arrived_stays_away_too(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, log = FeedbackStore(where), old_log()
    score = log[-2]
    store.write([score])  # it came before its interaction
    erase_at(store, monkeypatch)
    assert store.count(Feedback) == 1  # nobody can know yet whose it is
    assert store.write([log[2]]) == Written(erased=1)
    assert store.count(Feedback) == 0
    assert store.write([score, replace(score, id="other")]) == Written(erased=2)
    again = replace(log[4], time=NOW + timedelta(seconds=1), request_id="r000006")
    store.write([again])  # an id that is used anew is not closed by its old record
    assert store.write([log[6]]) == Written(erased=1)
    assert store.write([replace(score, id="on", request_id="r000006")]) == Written(new=1)
    store.close()


ERASE = f"""
import sys
from llmops_kit.feedback import erase
from llmops_kit.feedback.feedback_store import FeedbackStore
store = FeedbackStore(sys.argv[1])
step = erase._erase_interactions
def slow(*told):
    print("begun", flush=True)
    sys.stdin.readline()
    return step(*told)
erase._erase_interactions = slow
store.erase_user({ANN!r})
"""


def test_an_erasure_that_was_killed_lets_nothing_in(where: str) -> None:
    store, log = FeedbackStore(where), old_log()
    store.write(log[:20])
    command = [sys.executable, "-c", ERASE, where]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.write(log[20:40]) == Written(new=10, erased=10)
    store.erase_user(ANN)
    assert store.count(Interaction, where={"user": ANN}) == 0
    assert store.write(log[:40]) == Written(same=20, erased=20)
    store.close()


def test_writers_and_an_erasure_at_once(where: str) -> None:
    store, log = FeedbackStore(where), old_log()
    writers = [FeedbackStore(where) for _ in range(3)]
    begun = threading.Barrier(4)

    def write(one: FeedbackStore) -> None:
        begun.wait()
        for _ in range(6):
            one.write(log, size=7)

    threads = [threading.Thread(target=write, args=[one]) for one in writers]
    for thread in threads:
        thread.start()
    begun.wait()
    store.erase_user(ANN)
    for thread in threads:
        thread.join()
    assert store.count(Interaction, where={"user": ANN}) == 0
    assert {one.id for one in store.read(Feedback)} == {"j3"}
    for one in (store, *writers):
        one.close()


def test_version_3_remembers_erasures_from_now_on(where: str) -> None:
    database = Database(where)
    with database.writing() as connection:
        tables = [one for one in schema.metadata.sorted_tables if one is not schema.erased]
        schema.metadata.create_all(connection, tables)
        connection.execute(schema.schema_version.insert().values(version=3))
        rows = [schema.row_of(one) for one in old_log() if isinstance(one, Interaction)]
        connection.execute(schema.interactions.insert(), rows)
    database.close()
    store = FeedbackStore(where)
    assert store.erase_user(ANN).interactions == 20
    assert store.write(old_log()[:40]) == Written(same=20, erased=20)
    store.close()


def fill_version_1(database: Database, bad: bool = False) -> None:
    rows = [
        {
            "request_id": f"r{n:04d}",
            "timestamp": "yesterday" if bad and n % 400 == 7 else f"2026-01-01T00:{n % 60:02d}:00Z",
            "prompt": "p",
            "response": "r\ud83d\ude00",
            "metadata": {"model": "m", "latency_ms": 12.5, "release": 7},
            "feedback": {
                "type": "correction",
                "data": "better",
                "timestamp": "2026-01-02T00:00:00Z",
            }
            if n % 2
            else None,
            "signals": [
                {"signal": "copied", "data": {"n": 1}, "timestamp": "2026-01-02T00:00:01Z"}
            ],
        }
        for n in range(1100)
    ]
    for row in rows:
        row["response"] = "r"
    with database.writing() as connection:
        upgrades.create_version_1(connection)
        connection.execute(upgrades.interactions_1.insert(), rows)


def test_version_1_becomes_the_present_one(where: str) -> None:
    fill_version_1(Database(where))
    store = FeedbackStore(where)
    assert store.count(Interaction) == 1100
    assert store.count(Feedback) == 1650
    one = store.get(Interaction, ["r0001"])["r0001"]
    assert (one.model, one.latency_ms, one.tags) == ("m", 12.5, {"release": "7"})
    assert one.time == as_utc("2026-01-01T00:01:00Z")
    said = store.feedback_of(["r0001"])["r0001"]
    assert [(s.kind, s.text, s.data) for s in said] == [
        ("correction", "better", {}),
        ("copied", "", {"n": 1}),
    ]
    assert store.write([one]) == Written(same=1)
    again = FeedbackStore(where)
    assert again.count(Interaction) == 1100
    with again.reading() as connection:
        versions = connection.execute(text("SELECT version FROM llm_schema")).scalars().all()
    assert versions == [schema.VERSION]
    store.close()
    again.close()


def test_a_reader_sees_one_state_while_another_writes(where: str) -> None:
    store, other = FeedbackStore(where), FeedbackStore(where)
    count = text("SELECT count(*) FROM llm_feedback")
    store.write([thumb("a", 1)])
    with store.reading() as connection:
        assert connection.execute(count).scalar() == 1
        other.write([thumb("b", 1)])
        assert connection.execute(count).scalar() == 1
    with store.reading() as connection:
        assert connection.execute(count).scalar() == 2
    store.close()
    other.close()


def test_a_migration_that_fails_changes_nothing(where: str) -> None:
    database = Database(where)
    fill_version_1(database, bad=True)
    with pytest.raises(StoreError, match=r"3 rows cannot be carried over(.|\n)*r0007.*yesterday"):
        FeedbackStore(where)
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM llm_interactions")).scalar() == 1100
        assert connection.execute(text("SELECT version FROM llm_schema")).scalar() == 1
    database.close()


def test_databases_of_others_are_left_alone(where: str) -> None:
    database = Database(where)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE llm_interactions (id TEXT)"))
    with pytest.raises(StoreError, match="of something else"):
        FeedbackStore(where)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE llm_schema (version INTEGER)"))
        connection.execute(text("INSERT INTO llm_schema VALUES (99)"))
    with pytest.raises(StoreError, match=f"of version 99, this code knows {schema.VERSION}"):
        FeedbackStore(where)
    database.close()


WRITER = """
import sys
from datetime import UTC, datetime, timedelta
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
where, name, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, start = FeedbackStore(where), datetime(2026, 11, 1, tzinfo=UTC)
for batch in range(batches):
    rows = [Interaction(f"{name}-{batch}-{n}", start, "p" * 300) for n in range(50)]
    rows += [Interaction(f"shared-{batch}-{n}", start, "p") for n in range(5)]
    rows.append(Feedback(f"{name}-{batch}", f"{name}-{batch}-0", "implicit", "copied", start))
    store.write(rows)
    print(batch, flush=True)
"""


def writer(where: str, name: str, batches: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, where, name, str(batches)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_four_writers_and_a_reader_lose_nothing(where: str) -> None:
    some = [writer(where, f"w{number}", 6) for number in range(4)]
    for one in some:
        assert one.stdout is not None and one.stdout.readline() == "0\n"
    store, counts = FeedbackStore(where), [0]
    while any(one.poll() is None for one in some):
        counts.append(sum(1 for _ in store.read(Interaction)))
    assert [one.wait() for one in some] == [0] * 4
    assert counts == sorted(counts)  # a reader never sees a row vanish
    assert store.count(Interaction) == 4 * 6 * 50 + 6 * 5
    assert store.count(Feedback) == 4 * 6
    store.close()


def test_what_was_written_survives_kill_9(where: str) -> None:
    process = writer(where, "w", 100_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            break
    process.send_signal(signal.SIGKILL)
    told = [int(line), *map(int, process.stdout.read().split())][-1]
    process.wait()
    store = FeedbackStore(where)
    count = store.count(Interaction)
    assert count >= (told + 1) * 55
    assert count % 55 == 0  # a batch is there as a whole, or not at all
    assert store.write([interaction(1)]) == Written(new=1)
    store.close()


def test_threads_and_forks_share_a_store(where: str) -> None:
    store = FeedbackStore(where)
    threads = [
        threading.Thread(
            target=lambda k: store.write(interaction(k * 100 + n) for n in range(100)), args=[k]
        )
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        done = store.write([interaction(900)]) == Written(new=1)
        os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.count(Interaction) == 401
    store.close()


def test_a_lock_that_is_never_given_back(where: str) -> None:
    store = FeedbackStore(where, timeout_s=0.2)
    with Database(where).writing():
        with pytest.raises(StoreError, match="another process keeps the database locked"):
            store.write([interaction(1)])
        assert store.count(Interaction) == 0  # readers go on
        late = FeedbackStore(where, timeout_s=0.2)  # and a dashboard can be opened
        assert late.count(Interaction) == 0
    assert store.write([interaction(1)]) == Written(new=1)
    store.close()


def test_a_full_disk_keeps_nothing_of_the_batch(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    store.write([interaction(1)])
    store.close()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        with pytest.raises(StoreError):
            store.write(interaction(n, prompt="p" * 1000) for n in range(1000, 2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [one.request_id for one in store.read(Interaction)] == ["r000001"]
    assert store.write(interaction(n) for n in range(1000, 2000)) == Written(new=1000)


def test_files_that_are_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, and not a database. " * 100)
    with pytest.raises(StoreError, match="not a SQLite database"):
        FeedbackStore(path)
    with pytest.raises(StoreError, match="folder cannot be made"):
        FeedbackStore(path / "inside.sqlite")
    with pytest.raises(StoreError, match="cannot be opened"):
        FeedbackStore(tmp_path)
    address = "postgresql://ann:hunter2@127.0.0.1:9/feedback"
    with pytest.raises(StoreError, match="the server does not serve") as failed:
        FeedbackStore(address)
    assert "hunter2" not in str(failed.value)
    for wrong in ("mysql://db/x", "sqlite://", "sqlite:///:memory:", "://"):
        with pytest.raises(DataError):
            FeedbackStore(wrong)


def test_reading_takes_constant_memory(tmp_path: Path) -> None:
    import tracemalloc

    store = FeedbackStore(tmp_path / "feedback.sqlite")
    peaks = []
    for size in (1500, 4500):
        store.write(interaction(n, prompt="p" * 2000) for n in range(size))
        tracemalloc.start()
        assert sum(1 for _ in store.read(Interaction)) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


TEXT = st.text(st.characters(), max_size=30)  # surrogates and NUL included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.floats(-1e300, 1e300) | TEXT,
    lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXT, one, max_size=3),
    max_leaves=8,
)
SLOW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SLOW
@given(TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=3), st.dictionaries(TEXT, JSON, max_size=3))
def test_hostile_text_comes_back(
    where: str, one: str, two: str, tags: dict[str, str], data: dict[str, object]
) -> None:
    store, name = FeedbackStore(where), new_id()
    asked = Interaction(name, START, one, two, model=two, session=one, user=one, tags=tags)
    said = Feedback(name, name, "implicit", "copied", START, comment=one, data=data)
    assert store.write([asked, said]) == Written(new=2)
    assert store.get(Interaction, [name])[name] == asked
    assert store.get(Feedback, [name])[name] == said
    assert store.write([asked, said]) == Written(same=2)
    assert store.count(Interaction, where={"session": asked.session, "request_id": name}) == 1
    assert Interaction.from_dict(asked.to_dict()) == asked
    assert Feedback.from_dict(said.to_dict()) == said
    store.close()


@given(st.datetimes(timezones=st.timezones()))
def test_moments_survive_to_the_microsecond(moment: datetime) -> None:
    kind = schema.UtcTime()
    try:
        utc = as_utc(moment)
    except DataError:
        return  # outside of the years 1 to 9999 in UTC
    number = kind.process_bind_param(utc, None)
    assert kind.process_result_value(number, None) == utc
    assert Interaction("r", utc).time.tzinfo is UTC


@given(TEXT, TEXT)
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    parts = word_diff(before, after)
    assert "".join(text for op, text in parts if op != "+") == before
    assert "".join(text for op, text in parts if op != "-") == after


def test_a_diff_of_long_texts_is_quick() -> None:
    one, two = ("a b " * 250_000, "b a c " * 160_000)
    with bounded():
        parts = word_diff(one, two)
    assert "".join(text for op, text in parts if op != "+") == one
