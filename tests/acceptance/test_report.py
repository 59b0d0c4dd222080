"""`chainette report`, and its page in a real browser."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.cli import CHAIN, Project, until
from tests.support.patience import LONG
from tests.support.tools import program

SECTIONS = ("summary", "flow", "charts", "steps", "rejects", "engines", "stretches", "settings")
HOSTILE = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\"></pre>"

#: As root in a container, and without requests of the browser's own.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run, once resumed, with hostile text in a bad line and in a model's name."""
    project = Project(tmp_path_factory.mktemp("report"), rows=400, invalid=0.1)
    (project.path / "chain.py").write_text(CHAIN.replace("writer-model", "writer <b onclick=x>model</b>"))
    with (project.path / "in.jsonl").open("a") as file:
        file.write('{"text": "no json ' + HOSTILE.replace('"', "'") + "\n" + json.dumps({"text": [HOSTILE]}) + "\n")
    assert project.chainette("run", "chain.py", "in.jsonl", "-o", "out", "--quiet").returncode == 3
    retried = project.chainette("rejected", "out", "--retry", "--step", "grade", "--quiet")
    assert retried.returncode == 3, retried.stderr
    done = project.chainette("report", "out", "--price", "writer=in:1,out:2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote out/report.html (")
    return project


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = program("chromium", "apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=[*FLAGS], timeout=1000 * LONG)
        yield browser
        browser.close()


class Seen:
    """The page as a browser shows it, and the browser's messages."""

    def __init__(self, browser: Browser, file: Path, width: int, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(1000 * LONG)
        self.said: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(file.as_uri())
        self.picture = self.page.screenshot(path=file.with_name(f"{width}-{scheme}.png"), full_page=True)

    def cells(self) -> dict[str, dict[str, int]]:
        """Step -> column -> number, out of the table."""
        script = """rows => rows.map(row => [row.dataset.step,
            [...row.querySelectorAll('td[data-name]')].map(cell => [cell.dataset.name, cell.textContent.trim()])])"""
        rows = self.page.locator("tr[data-step]").evaluate_all(script)
        return {
            step: {name: int(text.replace(",", "").replace("·", "0")) for name, text in cells if name != "cost"}
            for step, cells in rows
        }


def test_the_page_renders_without_a_complaint_or_a_request_on_a_desk_and_on_a_phone(project: Project, browser: Browser) -> None:
    file = project.path / "out/report.html"
    for width in (1280, 400):
        seen = Seen(browser, file, width)
        assert (seen.said, seen.requested) == ([], [file.as_uri()])
        for section in SECTIONS:
            box = seen.page.locator(f"#{section}").bounding_box()
            assert box is not None and box["height"] > 60, section
            assert box["width"] <= width
        assert seen.page.evaluate("document.documentElement.scrollWidth") == width
        shown = "wide" if width > 700 else "narrow"
        charts = seen.page.locator(f"figure .{shown} svg")
        assert charts.count() == 3
        assert all(charts.nth(number).bounding_box() for number in range(3))
        assert len(seen.picture) > 50_000
        seen.page.close()


def test_what_stands_in_rows_is_shown_and_does_nothing(project: Project, browser: Browser) -> None:
    seen = Seen(browser, project.path / "out/report.html", 800)
    assert seen.page.title() == "facts: finished"
    assert seen.page.locator("script, img, iframe, object, [onerror], [onclick]").count() == 0
    seen.page.locator("details").evaluate_all("every => every.forEach(one => one.open = true)")
    assert "<script>document.title='owned'</script>" in seen.page.locator("#rejects").inner_text()
    assert "writer <b onclick=x>model</b>" in seen.page.locator("#engines").inner_text()
    seen.page.close()


def test_the_numbers_are_those_of_the_metadata(project: Project, browser: Browser) -> None:
    metadata = json.loads((project.path / "out/metadata.json").read_text())
    seen = Seen(browser, project.path / "out/report.html", 1280)
    cells = seen.cells()
    assert {*cells} == {*metadata["steps"]}
    for step, counts in metadata["steps"].items():
        usage = counts.get("usage", {})
        expected = {"prompt_tokens": usage.get("prompt_tokens", 0), "answer_tokens": usage.get("completion_tokens", 0)}
        expected |= {name: counts[name] for name in counts if isinstance(counts[name], int) and name != "balanced"}
        assert cells[step] == {name: expected.get(name, 0) for name in cells[step]}, step
    assert metadata["steps"]["split"]["expanded"] > 0 < metadata["steps"]["grade"]["rejected"]
    reasons = {
        (step, reason.replace("_", " ")): count
        for step, counts in metadata["steps"].items()
        for reason, count in counts.get("reasons", {}).items()
    }
    shown = seen.page.locator("#rejects summary").all_inner_texts()
    assert len(shown) == len(reasons) >= 2
    for (step, reason), count in reasons.items():
        assert any(f"{reason} at {step} {count}" in text for text in shown), (step, reason, shown)
    seen.page.close()


@pytest.mark.long
def test_it_is_dark_where_the_reader_wants_it_dark(project: Project, browser: Browser) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        seen = Seen(browser, project.path / "out/report.html", 1280, scheme)
        papers.add(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        line = seen.page.locator("figure .wide svg path[stroke^='var(--s1)']").first
        papers.add(line.evaluate("path => getComputedStyle(path).stroke"))
        seen.page.close()
    assert len(papers) == 4


def test_the_run_directory_stays_what_it_was(project: Project) -> None:
    """A page in it stops neither a resume nor a reader of the dataset."""
    import datasets

    before = {path: path.read_bytes() for path in (project.path / "out").rglob("*.json*")}
    assert project.chainette("report", "out").returncode == 0
    done = project.chainette("resume", "out", "--quiet")
    assert done.returncode == 3, done.stderr
    assert (project.path / "out/report.html").exists()
    assert before == {path: path.read_bytes() for path in before}
    found = datasets.load_dataset(str(project.path / "out"), "extract", split="train", cache_dir=str(project.path / "datasets"))
    assert len(found) == 400


@pytest.mark.long
def test_a_run_that_is_running_or_was_killed_has_a_report(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=2000, latency=0.2)
    running = project.start("run", "chain.py", "in.jsonl", "-o", "out", "--quiet")
    until(lambda: (tmp_path / "out/grade/0.jsonl").exists() and (tmp_path / "out/grade/0.jsonl").stat().st_size)
    assert project.chainette("report", "out", "-o", "page.html").returncode == 0
    assert '<span class="pill running">running</span>' in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "out/report.html").exists()
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert project.chainette("report", "out").returncode == 0
    text = (tmp_path / "out/report.html").read_text()
    assert '<span class="pill killed">killed</span>' in text
    assert "chainette resume out" in text
    assert "left at this rate" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere holds no run"),
        (("out", "--price", "writer=cheap"), "expected ENGINE=in:0.15,out:0.6"),
        (("out", "--price", "gpt=in:1,out:2"), "the run has no engine 'gpt'; it has judge, writer"),
    ],
)
def test_what_cannot_be_reported_is_said(project: Project, words: tuple[str, ...], message: str) -> None:
    done = project.chainette("report", *words)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
