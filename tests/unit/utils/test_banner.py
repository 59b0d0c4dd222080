"""The banner fits small terminals."""

from __future__ import annotations

from chainette.utils.banner import banner


def test_the_banner_is_four_narrow_lines_of_ascii_that_end_in_the_version() -> None:
    lines = banner("1.2.3").splitlines()
    assert len(lines) == 4
    assert all(len(line) < 60 for line in lines)
    assert "".join(lines).isascii()
    assert lines[-1].endswith(" 1.2.3")
