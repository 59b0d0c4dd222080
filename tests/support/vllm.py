"""Models for vLLM that need no network: one that answers, and one that is quick."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY

__all__ = ["SMOL", "needs_vllm", "tiny_model"]

#: SmolLM2-135M-Instruct as `make .models/smollm2` leaves it.
SMOL = REPOSITORY / ".models/smollm2"

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or not SMOL.is_dir(),
        reason="vLLM or its model is missing (make .venv/.vllm .models/smollm2)",
    ),
]


def tiny_model(folder: Path) -> Path:
    """Two small layers under the same tokenizer, for `load_format="dummy"`: random answers, a hundred times as fast."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(SMOL / name, folder)
    config = json.loads((SMOL / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
