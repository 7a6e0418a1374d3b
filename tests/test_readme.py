"""What the README says is there: files, chapters, commands, their options, code. Some 7 s."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.main import get_command

from llmops_kit.apps.cli import app, parameters

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("llmops-kit ")
]


def _map() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(nbs/\w+)` \| ([^|]+) \| `[\w.]+` \|$", README, re.MULTILINE)
    return {folder: chapters.split(" · ") for folder, chapters in rows}


def test_the_map_names_every_chapter() -> None:
    there = {
        f"nbs/{folder.name}": sorted(path.stem for path in folder.glob("[0-9]*.ipynb"))
        for folder in (ROOT / "nbs").glob("[0-9]*")
    }
    assert {folder: sorted(chapters) for folder, chapters in _map().items()} == there


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"`((?:nbs|data)/[\w./-]+)`", README))
    named |= set(re.findall(r"\]\((nbs/[\w./-]+)\)", README))
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("line", LINES)
def test_commands_and_options_exist(line: str) -> None:
    words = shlex.split(line.replace("...", "x"), comments=True)[1:]
    command = COMMANDS[words[0]]
    if words[0] == "run":
        known = parameters(ROOT / "nbs" / "runs" / f"{words[1]}.ipynb")
        given = [name for word, name in pairwise(words) if word == "-p"]
        assert set(given) <= set(known)
        return
    own = {option for one in command.params for option in one.opts}
    assert {word for word in words if word.startswith("--")} <= own


def test_the_feedback_blocks_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = "".join(block for block in blocks if "llmops_kit.feedback" in block)
    code += "\nprint(len(list(store.read_with_feedback())))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, last = done.stdout.splitlines()
    assert first.startswith("satisfaction_rate 83.3 % [")
    assert last == "5"  # of six users one is erased
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"cases.jsonl", "train.jsonl"}
