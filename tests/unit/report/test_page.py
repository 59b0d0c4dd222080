"""The report as text: its content, and that content of rows stays text."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from chainette.engine.price import Price
from chainette.errors import RunError
from chainette.io.rundir.event_log import read_log
from chainette.io.rundir.statistics import Figures, figures
from chainette.report.page import render_page
from tests.support.chains import everything, texts

HOSTILE = '</pre></style><script>alert(1)</script><img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    directory = tmp_path_factory.mktemp("run") / "out"
    everything().run(texts(40), directory)
    return figures(event for _, event in read_log(Path(directory) / "events.jsonl"))


def page(found: Figures, prices: dict[str, Price] | None = None, raw: str = "raw", message: str = "message") -> str:
    row = {"row_id": "7", "line": 8, "attempts": 1, "message": message, "raw": raw}
    examples = {(step, reason): [row] for step, counts in found.state.nodes.items() for reason in counts.reasons}
    return render_page(found, examples, prices or {}, directory="out", working=False, written_at="2026-01-01T00:00:00.000000Z")


def test_the_page_is_complete_without_network_or_scripts(found: Figures) -> None:
    text = page(found)
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#|["']?url)[\w/]""", text)
    assert "default-src 'none'" in text


def test_content_of_rows_is_shown_as_text_only(found: Figures) -> None:
    text = page(found, raw=HOSTILE, message=HOSTILE)
    assert HOSTILE not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2


def test_cost_is_tokens_times_price_and_only_if_there_is_a_price(found: Figures) -> None:
    usage = found.state.node("hidden").usage
    expected = (usage.prompt_tokens * 2000 + usage.completion_tokens * 10_000) / 1e6
    text = page(found, {"second": Price(prompt=2000, answer=10_000)})
    costs = re.findall(r'data-step="(\w+)".*?data-name="cost">([^\s<]+)', text, re.DOTALL)
    priced = {step: cost for step, cost in costs if cost != "·"}
    assert priced == {"hidden": f"{expected:,.2f}"}
    assert expected > 0.01
    assert "without first" in text
    assert 'data-name="cost"' not in page(found)


def test_the_report_says_how_many_rows_each_engine_of_a_step_answered(found: Figures) -> None:
    engines = found.state.node("closing").engines
    assert engines["second"].given > 0
    assert f"first ({engines['first'].given} rows), second ({engines['second'].given} rows)" in page(found)


def test_the_cost_of_a_step_is_that_of_all_its_engines(found: Figures) -> None:
    engines = found.state.node("closing").engines
    first, second = engines["first"].usage.completion_tokens, engines["second"].usage.completion_tokens
    text = page(found, {"first": Price(answer=1000), "second": Price(answer=3000)})
    [cost] = re.findall(r'data-step="closing".*?data-name="cost">([^\s<]+)', text, re.DOTALL)
    assert cost == f"{(first * 1000 + second * 3000) / 1e6:,.2f}"


def test_a_long_answer_is_cut_with_a_note(found: Figures) -> None:
    assert "(100,000 characters)" in page(found, raw="x" * 100_000)


def test_without_the_charts_package_the_error_names_it(found: Figures) -> None:
    with (
        mock.patch.dict(sys.modules, {"vl_convert": None}),
        pytest.raises(RunError, match=r"pip install 'chainette\[report\]'"),
    ):
        page(found)
