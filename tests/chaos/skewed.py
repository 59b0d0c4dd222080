"""`chainette` in a process whose clock is wrong: `python -m tests.chaos.skewed SECONDS WORDS...`.

Only the wall clock, which Python code reads as the date. Elapsed time (`time.monotonic`) is right, as on a real machine.
"""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any


def skew(seconds: float) -> None:
    """Has every module that is imported from now on see another date."""
    right, right_ns, right_class = time.time, time.time_ns, datetime.datetime

    class Skewed(right_class):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return right_class.fromtimestamp(time.time(), tz)

    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)
    datetime.datetime = Skewed  # type: ignore[misc]


if __name__ == "__main__":
    skew(float(sys.argv.pop(1)))
    from chainette.cli.main import main

    main()
