"""Real servers on loopback, each on a free port and gone with its `with`."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(process: subprocess.Popen[bytes], port: int, seconds: float = 240) -> bool:
    """Whether the process comes to accept connections on `port`; False as soon as it has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def running(command: Sequence[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server that `command` starts in `folder`, once it accepts connections on `port`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, **quiet)
    try:
        assert answers(process, port), f"{command[0]} does not answer, or ended"
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """The address of a Redis server that keeps everything in memory."""
    port = port or free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    with running(command, port, folder):
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def chroma_server(folder: Path) -> Iterator[str]:
    """The address of a `chroma run` server that keeps its rows in `folder`."""
    port = free_port()
    program = str(Path(sys.executable).with_name("chroma"))
    command = [program, "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, port, folder):
        yield f"http://127.0.0.1:{port}"
