"""Lists skipped and omitted tests at the end, and how to run them; in CI a skip is a failure."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Generator

import pytest

from tests.support.tools import ALL, CI, memory_disk


def pytest_configure(config: pytest.Config) -> None:
    if (disk := memory_disk()) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(disk))
    folder = tempfile.TemporaryDirectory(prefix="chainette-state-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_STATE_HOME"] = folder.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker of pytest-xdist gets all tests that share a module's fixture, so that the fixture is made once."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("xdist_group") is None and (shared := _shared(item)):
            item.add_marker(pytest.mark.xdist_group(shared))


def pytest_collection_finish(session: pytest.Session) -> None:
    """A pytest whose groups pytest-xdist cannot see would open a model or a fleet in every worker, and say nothing."""
    if CI and getattr(session.config.option, "loadgroup", False):
        lost = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if lost:
            raise pytest.UsageError(f"pytest {pytest.__version__} loses groups of tests ({lost[0]}): make .venv/.dev")


def _shared(item: pytest.Function) -> str:
    """A name for the module's fixtures a test needs, with their parameters; "" if it needs none."""
    made = item._fixtureinfo.name2fixturedefs
    names = [name for name in item.fixturenames if name in made and made[name][-1].scope == "module"]
    indices = item.callspec.indices if hasattr(item, "callspec") else {}
    parts = [str(indices[name]) for name in names if name in indices]
    return "-".join([item.path.stem, *parts]) if names else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI every program and package is there, so that a skip means that `.ci/run` forgot one."""
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        found = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped {sum(reasons.values())}: {found}", yellow=True)
    if "not long" in terminalreporter.config.option.markexpr:
        terminalreporter.write_line("left out: long tests, most of which kill parts of real fleets; `CI=1 make test` runs them")
    if not ALL:
        terminalreporter.write_line(
            "of large matrices of seeds, crash points and formats, a sample ran; `make test LONG=all` runs the whole"
        )


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
