"""When a full queue is sent its next root again."""

from __future__ import annotations

from math import inf

import pytest
from chainette_workers.sink import admission
from chainette_workers.sink.admission import Pace


class Full:
    """A coordinator whose queue has no room."""

    finished = False

    def __init__(self) -> None:
        self.tries = 0

    def step(self) -> bool:
        self.tries += 1
        return False


def test_a_root_that_has_to_wait_is_sent_again_when_another_is_complete_or_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "_REFUSED", inf)
    pace, full = Pace(), Full()
    assert not pace.admit(full, done=0) and full.tries == 1
    assert not pace.admit(full, done=0) and full.tries == 1
    assert not pace.admit(full, done=1) and full.tries == 2
    monkeypatch.setattr(admission, "_REFUSED", 0.0)
    assert not pace.admit(full, done=1) and full.tries == 3
