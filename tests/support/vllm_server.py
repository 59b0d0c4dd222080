"""vLLM's own OpenAI-compatible server with the small model, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cli import until
from tests.support.llama_server import CONTEXT
from tests.support.vllm import SMOL

__all__ = ["NAME", "vllm_server"]

NAME = "smol"
_ARGUMENTS = {
    "--model": str(SMOL),
    "--served-model-name": NAME,
    "--dtype": "float32",
    "--max-model-len": str(CONTEXT),
    "--max-num-seqs": "8",
    # without it the small model fills its answers with blanks
    "--structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    "--host": "127.0.0.1",
}
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """The address of a server that takes requests until the end of the block; it writes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word for pair in _ARGUMENTS.items() for word in pair]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, "--enforce-eager", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=os.environ | _ENVIRONMENT, stdout=output, stderr=output, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(server, address, log))
        yield address
    finally:
        server.terminate()
        server.wait()


def _answers(server: subprocess.Popen[bytes], address: str, log: Path) -> bool:
    assert server.poll() is None, log.read_text(errors="replace")[-3000:]
    try:
        with urllib.request.urlopen(f"{address}/health") as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
