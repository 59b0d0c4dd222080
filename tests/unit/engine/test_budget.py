"""Amounts of budgets in words."""

from __future__ import annotations

import pytest

from chainette.engine.budget import Amounts, BudgetLimits, budget_spent, fits, limit_words, parse_budget

CASES = [
    ((10, -1, -1, -1), Amounts(10), Amounts(1)),
    ((-1, -1, 10_000, -1), Amounts(), Amounts(1, 1095, 2_148_000)),
    ((-1, 5_000_000, -1, 360_000), Amounts(9, 4_999_000, 0, 1), Amounts(1, 400_000, 0, 359_999)),
    ((-1, -1, -1, 1), Amounts(), Amounts(1, 9, 0, 7)),
    ((-1, -1, 123_456_789_012, -1), Amounts(0, 0, 123_456_000_000), Amounts(1, 1, 999_999_999)),
]


@pytest.mark.parametrize(("limits", "used", "needed"), CASES)
def test_the_budget_that_is_suggested_is_read_again_and_fits_the_next_request(
    limits: BudgetLimits, used: Amounts, needed: Amounts
) -> None:
    error = budget_spent(limits, used, needed)
    assert fits(parse_budget(error.flags[1::2]), used, needed), error
    assert parse_budget(limit_words(limits)) == pytest.approx(limits, rel=1e-5)
    assert "e-" not in str(error)


def test_small_amounts_may_be_written_with_an_exponent() -> None:
    assert parse_budget(["2e-05usd"]) == (-1, -1, 20_000, -1)
