"""A command's dataclasses are flags to the user: every field one, some hidden, some left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from chainette.cli.command_errors import guarded
from chainette.cli.flag_bundles import Telling
from chainette.cli.signature import Hidden, Only, words_of
from chainette.core.run_settings import FLAGS, RunSettings


def told(command: Callable[..., None], *words: str) -> str:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command)
    return CliRunner().invoke(app, [*words]).output


@guarded
def show(settings: RunSettings, telling: Annotated[Telling, Hidden({"show"})]) -> None:
    typer.echo(f"{settings.given} {telling.show}")


@guarded
def some(settings: Annotated[RunSettings, Only({"limit", "window"})]) -> None:
    typer.echo(settings.given)


def test_every_setting_has_one_flag_and_help() -> None:
    assert [*FLAGS] == [field.name for field in fields(RunSettings)]
    assert all(flag.help for flag in FLAGS.values())


@pytest.mark.parametrize("value", [{}, {"limit": 3, "flattened": False}, {"format": "csv", "key": "id", "usage": True}])
def test_the_flags_of_settings_give_the_settings_again(value: dict[str, object]) -> None:
    assert told(show, *words_of(replace(RunSettings(), **value))) == f"{value} False\n"  # type: ignore[arg-type]


def test_a_hidden_flag_is_taken_and_not_shown() -> None:
    assert "--show" not in told(show, "--help") and "--json-logs" in told(show, "--help")
    assert told(show, "--show") == "{} True\n"


def test_a_command_has_only_the_flags_that_it_names_with_the_help_for_going_on() -> None:
    shown = " ".join(told(some, "--help").split())
    assert "more than before" in shown and "--window" in shown and "--seed" not in shown
    assert "No such option" in told(some, "--seed", "1")


def test_a_value_out_of_range_is_a_message_and_no_traceback() -> None:
    assert "error: max_reject_rate is 2.0; it must be above 0 and at most 1" in told(show, "--max-reject-rate", "2")
    assert "error: engine_patience is inf; it must be a number of seconds" in told(show, "--engine-patience", "inf")
