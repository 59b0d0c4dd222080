"""A process that ends at once loses nothing that it has written."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import gc, gzip, sys, threading
from chainette.utils.process_end import leave

def writer():
    file = open("notes.txt", "w")
    return lambda text: file.write(text)

gc.freeze()
write = writer()
write("whole")
packed, log = gzip.open("packed.gz", "wb"), gzip.open("log.gz", "wt")
packed.write(b"whole")
log.write("whole")
print("said")
threading.Thread(target=threading.Event().wait).start()
leave(7)
"""


def test_a_process_that_leaves_writes_everything_and_waits_for_no_thread(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "")
    assert (tmp_path / "notes.txt").read_text() == "whole"
    assert {gzip.decompress((tmp_path / name).read_bytes()) for name in ("packed.gz", "log.gz")} == {b"whole"}
