"""The output of vLLM's children."""

from __future__ import annotations

import io
import os

from chainette.engine.vllm.child import ChildWords
from tests.support.patience import LONG


def test_children_that_print_are_read_even_if_nobody_can_be_told() -> None:
    closed = io.StringIO()
    closed.close()
    words = ChildWords(echo=closed)
    child = os.open(words.path, os.O_WRONLY)
    words.connected()
    os.write(child, b"loading\nValueError: no such model\n")
    os.close(child)
    assert words.last_error(LONG) == "ValueError: no such model"
    words.close()
