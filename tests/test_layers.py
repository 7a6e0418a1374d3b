"""The number of a notebook is its place in the order of dependence; this holds it there."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
BASE, MEETING, APPS = "00_base", "80_service", "90_apps"


def _directive(source: str, name: str) -> str | None:
    found = re.search(rf"^#\s*\|\s*{name}\s+(\S+)", source, re.M)
    return found and found.group(1)


def _read() -> dict[str, tuple[Path, list[str]]]:
    """Module name -> (notebook, exported sources) of every numbered notebook."""
    modules = {}
    for path in sorted(NBS.rglob("[0-9][0-9]_*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text())["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        name = next((found for s in sources if (found := _directive(s, "default_exp"))), None)
        assert name, f"{path} is numbered and names no module"
        assert name not in modules, f"{path} and {modules[name][0]} both export {name}"
        exported = [s for s in sources if re.search(r"^#\s*\|\s*exporti?\s*$", s, re.M)]
        modules[name] = (path, exported)
    return modules


MODULES = _read()


def _imports(sources: list[str]) -> set[str]:
    """Modules of the kit that these cells import, as 'rag.chunk'."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import of {node.module}"
                names = [node.module or ""]
                if node.module in {
                    "llmops_kit",
                    "llmops_kit.evals",
                    "llmops_kit.rag",
                    "llmops_kit.guardrails",
                    "llmops_kit.feedback",
                    "llmops_kit.apps",
                }:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            found |= {n.removeprefix("llmops_kit.") for n in names if n.startswith("llmops_kit.")}
    return found


def may_import(importer: Path, imported: Path) -> bool:
    """The rule: base below; a pattern imports base and its own folder; apps import anything."""
    own, other = importer.parent.name, imported.parent.name
    if own == other:
        return imported.name < importer.name
    if other == BASE:
        return True
    if own == MEETING:
        return other < MEETING
    return own == APPS


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_layers(name: str) -> None:
    path, sources = MODULES[name]
    for imported in _imports(sources):
        assert imported in MODULES, f"{path.name} imports {imported}: not a module of a notebook"
        other = MODULES[imported][0]
        assert may_import(path, other), f"{path} may not import {imported} ({other})"


def test_the_rule_itself() -> None:
    core, llm = NBS / BASE / "00_core.ipynb", NBS / BASE / "03_llm.ipynb"
    chunk, app = NBS / "20_rag" / "01_chunk.ipynb", NBS / APPS / "02_chunking.ipynb"
    judge = NBS / "10_evals" / "02_judge.ipynb"
    assert may_import(llm, core)
    assert may_import(chunk, llm)
    assert may_import(app, chunk)
    assert not may_import(core, llm)
    assert not may_import(llm, chunk)
    assert not may_import(chunk, judge)
    assert not may_import(chunk, app)


def test_each_module_is_generated_from_a_notebook() -> None:
    by_hand = {"__init__", "_modidx"}
    for path in (ROOT / "llmops_kit").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "llmops_kit").with_suffix("").parts)
        assert path.stem in by_hand or name in MODULES, f"{path} belongs to no notebook"
