"""The HTTP server of llama.cpp with the small model, in this process: a real OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chainette.engine.config import make_config
from chainette.engine.llama_cpp.model_path import model_path
from tests.support.models import SMOL

__all__ = ["CONTEXT", "llama_server"]

#: Tokens of context for each of the four slots.
CONTEXT = 1024
_SLOTS = 4


@contextmanager
def llama_server() -> Iterator[Any]:
    """An `xllamacpp.Server`, whose `listening_address` takes requests until the end of the block."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path(make_config("smol", SMOL, "llama_cpp")))
    params.verbosity, params.ui, params.fit_params, params.cache_ram_mib = -1, False, False, 0
    params.n_parallel, params.n_ctx, params.n_threads_http = _SLOTS, CONTEXT * _SLOTS, 8
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    yield xllamacpp.Server(params)
