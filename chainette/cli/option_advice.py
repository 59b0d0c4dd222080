"""Advice for flags that people know from other tools, or guess: the flag that does the same here."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["AdvisingCommand", "advice_on"]

_ROWS = "--limit N takes the first N records, --accept N stops once N rows are finished"
_BUDGET = "--budget 1000req (or 20usd, 5e6tok, 3gpuh)"
_ENGINE = "an engine is declared in the chain, or in a file: --engines FILE"
_STEP = "it belongs to a step: sampling=SamplingParams(...)"

_ADVICE = {
    "--base-url": _ENGINE,
    "--cache": "--reuse DIR takes answers from an earlier run",
    "--concurrency": "--workers N starts processes; an engine asks many rows at once without it",
    "--continue": "chainette resume DIR",
    "--dry-run": "--simulate, or chainette plan CHAIN INPUTS",
    "--endpoint": _ENGINE,
    "--max-cost": _BUDGET,
    "--max-requests": _BUDGET,
    "--max-rows": _ROWS,
    "--max-tokens": f"{_STEP}; for the whole run, --budget 5e6tok",
    "--model": _ENGINE,
    "--num-rows": _ROWS,
    "--param": "--set NAME=VALUE",
    "--parallel": "--workers N",
    "--resume": "chainette resume DIR",
    "--sample": "chainette plan CHAIN INPUTS --sample N asks some records and estimates the rest; --limit N takes the first N",
    "--stop-after": _ROWS,
    "--target": _ROWS,
    "--temperature": _STEP,
}


def advice_on(flag: str) -> str:
    """`; ` and the right flag in place of one that a command does not have; "" if unknown."""
    return f"; {_ADVICE[flag]}" if flag in _ADVICE else ""


class AdvisingCommand(TyperCommand):
    """A command whose message about an unknown flag has the advice, in place of flags that are spelled alike."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # NoSuchOption of click, or of typer's private copy of click
            flag = getattr(error, "option_name", None)
            if isinstance(flag, str) and (advice := advice_on(flag)):
                vars(error).update(message=f"No such option: {flag}{advice}", possibilities=None)
            raise
