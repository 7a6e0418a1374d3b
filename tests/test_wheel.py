"""The wheel in an empty environment outside the checkout: import, quickstart, runs, workbench.

Heavy dependencies are not installed a second time: the new environment sees those of the running
one through a path file, but not the checkout, whose editable install needs its own hook.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["llmops_kit", "nbs/apps", "nbs/runs", "data"]
FILES = ["setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"]


def _call(*command: str, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLMOPS_KIT", "PYTHON"))}
    done = subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    wheel = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    _call(sys.executable, *wheel, str(source), cwd=folder)
    shutil.rmtree(source)
    home = folder / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    (built,) = folder.glob("*.whl")
    _call(str(python), "-m", "pip", "install", "-q", "--no-deps", str(built), cwd=folder)
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def _readme_python() -> str:
    """The first Python block under the README's Quickstart."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"## Quickstart.*?```python\n(.*?)```", readme, re.DOTALL)
    assert found, "the README has no Quickstart with a Python block"
    return found.group(1)


def test_import_is_the_wheels_and_light(installed: Path) -> None:
    code = (
        "import sys, llmops_kit, llmops_kit.rag; print(llmops_kit.__file__);"
        "print(sorted({'torch', 'transformers', 'chromadb', 'panel', 'sklearn', 'ray'}"
        " & set(sys.modules)))"
    )
    shown = _call(str(installed / "bin/python"), "-c", code, cwd=installed.parent)
    file, heavy = shown.splitlines()
    assert Path(file).is_relative_to(installed)
    assert heavy == "[]"


def test_quickstart_of_the_readme(installed: Path) -> None:
    shown = _call(str(installed / "bin/python"), "-c", _readme_python(), cwd=installed.parent)
    assert re.search(r"TW-S507.*\[\d\]", shown)


def test_list_and_doctor_know_apps_and_runs(installed: Path) -> None:
    shown = _call(str(installed / "bin/llmops-kit"), "list", cwd=installed.parent)
    assert {"index", "chunking", "ask", "rag_report"} <= set(shown.split())
    assert "yes embedding model" in _call(
        str(installed / "bin/llmops-kit"), "doctor", cwd=installed.parent
    )


def test_a_run_writes_its_report(installed: Path) -> None:
    results = installed.parent / "results"
    arguments = ["run", "rag_report", "--no-progress-bar", "-p", "limit", "12"]
    _call(
        str(installed / "bin/llmops-kit"),
        *arguments,
        cwd=installed.parent,
        LLMOPS_KIT_RUNS=str(results),
    )
    assert {path.suffix for path in results.rglob("*")} >= {".csv", ".json", ".html", ".ipynb"}


def test_workbench_serves_its_pages(installed: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    log = installed.parent / "workbench.log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLMOPS_KIT", "PYTHON"))}
    with log.open("w") as file:
        server = subprocess.Popen(
            [str(installed / "bin/llmops-kit"), "workbench", "--port", str(port)],
            cwd=installed.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=clean,
        )
    try:
        for page in ("", "chunking", "ask"):
            assert "<html" in _fetch(f"http://localhost:{port}/{page}", server, log)
    finally:
        server.terminate()
        server.wait(120)
    assert "Error running application" not in log.read_text()
    with socket.socket() as probe:  # what was stopped is gone, and no child of it keeps the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("localhost", port))


def _fetch(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(url, timeout=120) as answer:
                return answer.read().decode()
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
