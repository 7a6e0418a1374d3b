"""Harmful programs behind the walls: each fails with its reason, and the host is unharmed."""

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from patience import eventually

from llmops_kit.core import DataError
from llmops_kit.evals import jail, sandbox
from llmops_kit.evals.sandbox import WALLS, Limits, SandboxRun, arun_python, run_python
from llmops_kit.llm import run_sync

TOOL, FAULTS = run_sync(sandbox._tool())
TIGHT = Limits(cpu_s=1, wall_s=60, memory_mb=200, processes=8, files_mb=4, output_kb=64)
QUICK = dataclasses.replace(TIGHT, wall_s=2)
LONG = Limits(cpu_s=120, wall_s=300)
walled = pytest.mark.skipif(not TOOL, reason=f"no walls stand on this machine: {FAULTS}")


def attack(code: str, limits: Limits = TIGHT) -> SandboxRun:
    """Run hostile code, only ever behind all walls; nothing of it may be left afterwards."""
    run = run_python(textwrap.dedent(code), limits=limits)
    assert set(run.walls) == set(WALLS)
    assert not any("NOT" in stood for stood in run.walls.values())
    return run


def turned_into(argument: str, program: str = "while 1: pass") -> str:
    """Code that becomes another process, whose command line carries a mark."""
    call = f"[sys.executable, '-c', {program!r}, {argument!r}]"
    return f"import os, sys; os.execv(sys.executable, {call})"


def marked(mark: str) -> list[int]:
    """The processes of the host whose command line holds a mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@walled
def test_harmless_code_first() -> None:
    run = attack("import os, sys; print(sum(map(int, sys.stdin.read().split())), os.listdir())")
    assert run.ok, run
    assert run.reason == ""
    assert run.stdout == "0 ['main.py']\n"
    assert run_python("print(input()[::-1])", stdin="é🙂").stdout == "🙂é\n"
    devices = "print(open('/dev/null').read(), len(open('/dev/urandom', 'rb').read(9)))"
    assert run_python(devices).stdout == " 9\n"


@walled
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "stopped after 1 s of processor time"),
        ("import time; time.sleep(600)", "stopped after 2 s of wall time"),
        ("x = bytearray(10**9)", "exit code 1: MemoryError"),
        (
            "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)",
            "exit code 1: BlockingIOError",
        ),
        ("while True: print('x' * 1000)", "stopped at 64 KiB of output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "stopped at 64 KiB of output"),
        ("open('big', 'wb').write(bytes(10**7))", "exit code 1: OSError"),
        ("for i in range(9): open(str(i), 'wb').write(bytes(10**6))", "exit code 1: OSError"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("def f(:", "exit code 1: SyntaxError"),
        ("x = '\0'", "exit code 1: SyntaxError"),
        ("x = '\ud800'", "exit code 1: "),
    ],
)
def test_limits(code: str, reason: str) -> None:
    run = attack(code, QUICK if "wall" in reason else TIGHT)
    assert not run.ok
    assert run.reason.startswith(reason), run
    assert len(run.stdout) + len(run.stderr) <= 64 * 1024


@walled
def test_memory_of_many_processes_adds_up() -> None:
    run = attack("""
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                x = bytearray(80 * 2**20)
                time.sleep(60)
        time.sleep(60)
    """)
    assert run.reason == "stopped: all processes together passed 200 MiB of memory"


@walled
@pytest.mark.parametrize("code", ["os.fork()", "\n    try: os.fork()\n    except OSError: pass"])
def test_a_fork_bomb(code: str) -> None:
    mark = f"mark-of-the-bomb-{os.getpid()}"
    run = attack(turned_into(mark, f"import os\nwhile True: {code}"), QUICK)
    assert not run.ok
    # Its children write their tracebacks into one another: the last line may be any of them.
    assert run.reason.startswith(("stopped", "exit code 1")), run
    assert marked(mark) == []


@walled
def test_files_of_the_host_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    secret.chmod(0o644)
    for path in (secret, Path(__file__), Path.home(), Path("/etc/passwd")):
        run = attack(f"import os; os.stat({str(path)!r}); print(os.listdir({str(path)!r}))")
        inside = path == Path.home() and run.ok  # a folder on the way to Python, and empty of ours
        assert inside or "FileNotFoundError" in run.reason or "NotADirectory" in run.reason, run
        assert "the key" not in run.stdout
        assert not inside or set(eval(run.stdout)) <= {".pyenv", ".local"}  # noqa: S307


@walled
@pytest.mark.parametrize("target", ["/usr/mark", "/mark", "/dev/mark", "/bin/mark", "/proc/mark"])
def test_nothing_is_written_outside(target: str) -> None:
    run = attack(f"open({target!r}, 'w').write('x')")
    assert run.reason.startswith("exit code 1: "), run
    assert not Path(target).exists()


@walled
def test_the_temporary_folder_is_fresh_and_gone() -> None:
    assert attack("open('mark', 'w').write('x'); import os; print(os.getcwd())").ok
    assert attack("import os; print(os.listdir())").stdout == "['main.py']\n"
    assert not Path("/tmp/mark").exists()
    assert not list(Path("/tmp").glob("sandbox-*/mark"))


@walled
def test_no_network_not_even_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        run = attack(f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)")
        # bwrap gives the sandbox a loopback of its own, where nobody listens; unshare gives none
        assert "unreachable" in run.reason or "refused" in run.reason, run
        with pytest.raises(TimeoutError):
            server.accept()
    run = attack("import socket; socket.create_connection(('192.0.2.1', 80), 1)")
    assert "unreachable" in run.reason, run


@walled
def test_abstract_sockets_of_the_host_are_not_there() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0llmops-kit-test")
        server.listen()
        run = attack("""
            import socket
            socket.socket(socket.AF_UNIX).connect("\\0llmops-kit-test")
        """)
    assert "ConnectionRefusedError" in run.reason, run


@walled
def test_the_parent_cannot_be_killed_or_looked_into() -> None:
    run = attack("""
        import os
        for pid in (os.getppid(), -1):
            for number in (9, 19):
                try: os.kill(pid, number)
                except OSError: pass
        for name in ("mem", "environ", "fd/0"):
            try: print(open(f"/proc/{os.getppid()}/{name}", "rb").read(1))
            except OSError as error: print(type(error).__name__)
        raise SystemExit("still here")
    """)
    assert run.reason == "exit code 1: still here", run
    assert run.stdout.split() == ["PermissionError"] * 3
    assert attack("print('and so are we')").ok


@walled
def test_rights_are_gone_for_good() -> None:
    run = attack("""
        import ctypes, os
        keys = ("CapInh", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs")
        lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line[:12])
        assert [int(lines[key], 16) for key in keys] == [0, 0, 0, 0, 1], lines
        libc = ctypes.CDLL(None)
        assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1
        assert libc.chroot(b"/tmp") == -1
        assert os.listdir("/proc/self/fd") == ["0", "1", "2", "3"], os.listdir("/proc/self/fd")
        assert set(os.environ) <= {"LC_CTYPE"}
    """)
    assert run.ok, run


@walled
def test_a_daemon_does_not_survive() -> None:
    mark = f"mark-of-a-daemon-{os.getpid()}"
    run = attack(f"""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                {turned_into(mark, "import time; time.sleep(60)")}
            os._exit(0)
        while not (lines := [
            line
            for p in os.listdir("/proc")
            if p.isdigit() and "{mark}" in (line := open(f"/proc/{{p}}/cmdline").read())
        ]):
            time.sleep(0.05)
        print(len(lines))
    """)
    assert run.stdout == "1\n", run
    assert marked(mark) == []


@walled
def test_a_cancelled_run_leaves_nothing() -> None:
    mark = f"mark-of-the-cancelled-{os.getpid()}"
    code = turned_into(mark)

    async def cancelled() -> int:
        task = asyncio.create_task(arun_python(code, limits=LONG))
        await asyncio.to_thread(eventually, lambda: marked(mark))
        running = len(marked(mark))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return running

    assert run_sync(cancelled()) >= 1
    assert marked(mark) == []


@walled
def test_a_host_that_dies_takes_the_sandbox_along(tmp_path: Path) -> None:
    mark = f"mark-of-the-orphan-{os.getpid()}"
    host = "from llmops_kit.evals.sandbox import *; "
    host += f"run_python({turned_into(mark)!r}, limits=Limits(cpu_s=120, wall_s=300))"
    with subprocess.Popen(
        [sys.executable, "-c", host],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        # The host's command line holds the mark in quotes, and so does a child that it just forked.
        inside = f"while 1: pass\0{mark}"
        assert eventually(lambda: len(marked(inside)) == 1)
        process.send_signal(signal.SIGKILL)
    assert eventually(lambda: marked(mark) == [])


@walled
def test_many_at_a_time_do_not_mix() -> None:
    async def together() -> list[SandboxRun]:
        return await asyncio.gather(*(arun_python(f"print({i}**2)") for i in range(8)))

    assert [run.stdout for run in run_sync(together())] == [f"{i * i}\n" for i in range(8)]


def test_without_walls_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for required in (WALLS, ("network",)):
        with pytest.raises(DataError, match="nothing was run"):
            run_python(f"open({str(tmp_path / 'ran')!r}, 'w')", require=required)
    assert not (tmp_path / "ran").exists()


def test_a_tool_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An `unshare` that only runs the command puts up no wall, and that shows before the code."""
    liar = tmp_path / "unshare"
    liar.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done; shift; exec "$@"\n')
    liar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setattr(sandbox, "_tried", {})
    monkeypatch.setattr(sandbox, "_shown", list)
    with pytest.raises(DataError, match="nothing was run") as told:
        run_python("print('no')")
    assert "unshare" in str(told.value)


PLAIN_USER = """
import json, sys
sys.path.insert(0, {root!r}); sys.path.append({site!r})
from llmops_kit.core import DataError
from llmops_kit.evals.sandbox import run_python, Limits
try:
    run = run_python({code!r}, limits=Limits(wall_s=60), require={require!r})
    print(json.dumps([run.ok, run.reason, run.stdout, sorted(set(run.walls.values()))]))
except DataError as error:
    print(json.dumps([None, str(error)]))
"""


@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/nowhere"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a plain user")
def test_as_a_plain_user(path: str, root: Path) -> None:
    """With the system's Python, since a plain user may not reach root's."""
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    site = str(Path(pytest.__file__).parent.parent)
    if not Path(system).exists():
        pytest.skip(f"there is no {system} for a plain user to run")
    code = "import os\nprint(os.getppid(), os.path.exists('/etc/passwd'))\nos.kill(1, 9)\n"
    wanted = () if path == "/nowhere" else WALLS
    script = PLAIN_USER.format(root=str(root), site=site, code=code, require=wanted)
    user = ["setpriv", "--reuid", "61000", "--regid", "61000", "--clear-groups"]
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv to become a plain user with")
    done = subprocess.run(
        [setpriv, *user[1:], system, "-B", "-c", script],
        env={"PATH": path}, cwd="/", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout, done.stderr[-500:]
    told = json.loads(done.stdout)
    if path == "/nowhere":
        assert told[0] is False, told
        assert told[3] == ["NOT walled off"]
        assert "PermissionError" in told[1]
    elif told[0] is None:
        pytest.skip(f"plain users get no namespaces here: {told[1]}")
    else:
        assert told[2] == "1 False\n", told
        assert "NOT walled off" not in told[3]


def test_limits_are_checked() -> None:
    for name in ("cpu_s", "wall_s", "memory_mb", "processes", "files_mb", "output_kb"):
        with pytest.raises(DataError, match=name):
            Limits(**{name: 0})
    with pytest.raises(DataError, match="no wall"):
        run_python("", require=["everything"])


def test_a_family_is_found_over_generations() -> None:
    code = "import os, time\nfor _ in range(2): os.fork()\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code]) as process:
        eventually(lambda: len(jail.family(process.pid)) == 3)
        family = jail.family(process.pid)
        for pid in [process.pid, *family]:
            os.kill(pid, signal.SIGKILL)
    assert len(family) == 3
    assert all(memory > 0 for memory in family.values())
