"""Text for spreadsheets: no cell begins with a formula, and the text can be restored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainette.io.tables.formulas import harmless, restored

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "'=1", "''=1", "-")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_gets_an_apostrophe(text: str) -> None:
    assert harmless(text) == f"'{text}" and restored(harmless(text)) == text


@pytest.mark.parametrize("text", ["", "a=1", "'", "'a", "3-1", "1 =1", "\u2212"])
def test_other_text_stays(text: str) -> None:
    assert harmless(text) == text == restored(text)


@given(st.text(alphabet="'=+-@\t\r\n a\uff1d", max_size=6))
def test_harmless_text_is_restored_exactly(text: str) -> None:
    assert restored(harmless(text)) == text
