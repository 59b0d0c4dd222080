"""Settings of a run as Python code gives them."""

from __future__ import annotations

import pytest

from chainette.core.run_settings import RunSettings
from chainette.errors import InputError


@pytest.mark.parametrize("name", ["limit", "batch_size", "engine_patience"])
def test_a_text_in_place_of_a_number_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is '3'; it must be a number"):
        RunSettings(**{name: "3"})  # type: ignore[arg-type] # as code without a type checker may
