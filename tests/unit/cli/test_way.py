"""How a run is gone on with in the way it was started."""

from __future__ import annotations

import pytest

from chainette.cli.options import way_of


def test_the_flags_of_a_run_say_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINETTE_REDIS_URL", "redis://:secret@host:1/0")
    assert way_of(None, None) == ()
    assert way_of("2", None) == ("--workers", "2")
    assert way_of(None, "redis://:word@other:2/1") == ("--redis", "redis://other:2/1")
    assert way_of(None, None, enqueue=True) == ("--redis", "redis://host:1/0")
