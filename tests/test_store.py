"""What the store chapter cannot show: other processes, kill -9, a server that comes and goes."""

import os
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import free_port, redis_server

from llmops_kit.core import DataError, MissingExtra, StoreError
from llmops_kit.store import BlobStore, open_store


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.needs("redis-server"))])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file, and a server: each test that takes this runs with both."""
    if request.param == "sqlite":
        return str(tmp_path / "rows.sqlite")
    url = str(request.getfixturevalue("redis_url"))
    from redis import Redis

    Redis.from_url(url).flushall()
    return url


def test_rows_come_back_as_they_went_in(where: str) -> None:
    store = open_store(where, "rows")
    rows = {b"": b"empty key", b"\0\xff'; DROP TABLE rows; --": b"\0\xff" * 40_000, b"a": b""}
    store.put(rows)
    assert store.get([*rows, b"absent"]) == rows
    assert store.get([]) == {}
    store.put({})
    store.put({b"a": b"new"})
    assert store.get([b"a", b"a"]) == {b"a": b"new"}


def test_tables_are_apart(where: str) -> None:
    open_store(where, "one").put({b"k": b"1"})
    open_store(where, "one_more").put({b"k": b"2"})
    assert open_store(where, "one").get([b"k"]) == {b"k": b"1"}
    assert open_store(where, "two").get([b"k"]) == {}


def test_more_rows_than_one_command_takes(where: str) -> None:
    store, rows = open_store(where, "rows"), {b"%d" % i: b"x%d" % i for i in range(25_000)}
    store.put(rows)
    assert store.get(list(rows)) == rows


def test_twenty_large_values_come_at_once(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = open_store(where, "rows"), list[str]()
    rows = {b"%d" % i: os.urandom(60_000) for i in range(200)}
    store.put(rows)
    if where.startswith("redis"):
        send = store._client.execute_command

        def told(*command: Any, **options: Any) -> Any:
            asked.append(command[0])
            return send(*command, **options)

        monkeypatch.setattr(store._client, "execute_command", told)
    else:
        connect = sqlite3.connect

        def traced(*path: Any, **options: Any) -> sqlite3.Connection:
            database = connect(*path, **options)
            database.set_trace_callback(asked.append)
            return database

        monkeypatch.setattr(sqlite3, "connect", traced)
    some = list(rows)[3::10]
    assert store.get(some) == {key: rows[key] for key in some}
    assert len([one for one in asked if one.startswith(("SELECT", "MGET"))]) == 1
    assert len(asked) < 10, asked


@given(rows=st.dictionaries(st.binary(max_size=40), st.binary(max_size=200), max_size=20))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, rows: dict[bytes, bytes]) -> None:
    store = open_store(tmp_path_factory.getbasetemp() / "any.sqlite", "rows")
    store.put(rows)
    assert store.get(list(rows)) == rows


def test_threads_share_a_store(where: str) -> None:
    store, faults = open_store(where, "rows"), []

    def work(thread: int) -> None:
        for i in range(20):
            rows = {b"%d-%d" % (thread, i): b"v", b"shared": b"%d" % i}
            store.put(rows)
            if store.get([*rows]).keys() != rows.keys():
                faults.append((thread, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(store.get([b"%d-%d" % (t, i) for t in range(6) for i in range(20)])) == 120


WRITER = """
import pickle, sys
store = pickle.loads(bytes.fromhex(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for i in range(100):
    store.put({b"%s-%d-%d" % (sys.argv[2].encode(), i, j): b"v" * 5000 for j in range(50)})
    print(i, flush=True)
"""


def writer(store: BlobStore, name: str) -> subprocess.Popen[str]:
    """A process with the store, waiting for a line before it writes 100 times 50 rows."""
    command = [sys.executable, "-c", WRITER, pickle.dumps(store).hex(), name]
    return subprocess.Popen(command, stdin=-1, stdout=-1, text=True)


def test_processes_share_a_store_from_its_first_moment(where: str) -> None:
    store = open_store(where, "rows")
    processes = [writer(store, name) for name in "abc"]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=300)
    assert [process.returncode for process in processes] == [0] * 3
    keys = [
        b"%s-%d-%d" % (name, i, j)
        for name in (b"a", b"b", b"c")
        for i in range(100)
        for j in range(50)
    ]
    assert len(store.get(keys)) == len(keys)


def test_what_was_put_survives_kill_9(where: str) -> None:
    store = open_store(where, "rows")
    with writer(store, "k") as process:
        assert process.stdin and process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        while (line := process.stdout.readline().strip()) != "20":
            assert line
        process.send_signal(signal.SIGKILL)
    found = store.get([b"k-%d-%d" % (i, j) for i in range(100) for j in range(50)])
    assert len(found) >= 21 * 50 and len(found) % 50 == 0
    store.put({b"after": b"the crash"})
    assert store.get([b"after"]) == {b"after": b"the crash"}


@pytest.mark.needs("redis-server")
def test_a_server_that_comes_and_goes(tmp_path: Path) -> None:
    port = free_port()
    store = open_store(f"redis://:secret@127.0.0.1:{port}/0", "rows")
    with pytest.raises(StoreError, match="does not serve") as caught:
        store.get([b"k"])
    assert "secret" not in str(caught.value) and str(port) in str(caught.value)
    with redis_server(tmp_path, "--requirepass", "secret", port=port):
        store.put({b"k": b"v"})
        assert store.get([b"k"]) == {b"k": b"v"}
        with pytest.raises(StoreError, match="authenticat"):
            open_store(f"redis://127.0.0.1:{port}/0", "rows").get([b"k"])
    with pytest.raises(StoreError, match="does not serve"):
        store.put({b"k": b"v"})


@pytest.mark.needs("redis-server")
def test_a_full_server_says_so(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "4mb") as url:
        store = open_store(url, "rows")
        with pytest.raises(StoreError, match="maxmemory"):
            for i in range(100):
                store.put({b"%d" % i: b"x" * 200_000})


def test_a_server_that_never_answers_is_not_waited_for() -> None:

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0?socket_timeout=0.2"
        with pytest.raises(StoreError, match=r"(?i)timeout|timed out"):
            open_store(url, "rows").get([b"k"])


@pytest.mark.parametrize("url", ["redis://h/x", "http://h/0", "redis:///0", "redis://h:99999/0"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(DataError, match="redis://host:port/0"):
        open_store(url, "rows")


@pytest.mark.parametrize("table", ["", "1x", "x y", "x;--", "x" * 64, 'a"', "sqlité"])
def test_a_name_that_cannot_be_a_table(table: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="table"):
        open_store(tmp_path / "f", table)


def test_without_the_package_a_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=r"llmops-kit\[redis\]"):
        open_store("redis://127.0.0.1/0", "rows")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, but a text that is long enough to look like one")
    for where in (tmp_path / "file", tmp_path / "file" / "below", tmp_path):
        with pytest.raises(StoreError, match="the store failed"):
            open_store(where, "rows").get([b"k"])


def test_the_default_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPS_KIT_CACHE", str(tmp_path))
    open_store(None, "rows").put({b"k": b"v"})
    assert open_store(tmp_path / "rows.sqlite", "rows").get([b"k"]) == {b"k": b"v"}


def test_light_import() -> None:
    program = "import sys, llmops_kit.store; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
