"""The GPUs of this machine, as `--gpu` counts them. Asks the driver's tools: importing torch would choose for us."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from chainette.errors import RunError

__all__ = ["CUDA_DEVICES", "chosen", "visible"]

#: The variable that lists the GPUs that a process sees.
CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"

_ASK = ["--query-gpu=index", "--format=csv,noheader"]

#: Folders of the driver, one for each GPU.
_DRIVER = Path("/proc/driver/nvidia/gpus")


def visible(variable: str | None) -> list[str]:
    """Names of the GPUs a process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all."""
    if variable is not None:
        return [name.strip() for name in variable.split(",") if name.strip()]
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        said = subprocess.run([tool, *_ASK], capture_output=True, text=True, check=False)  # noqa: S603
        if said.returncode == 0:
            return said.stdout.split()
    return [str(number) for number, _ in enumerate(_DRIVER.iterdir())] if _DRIVER.is_dir() else []


def chosen(wanted: str, variable: str | None) -> list[str]:
    """The GPUs that `--gpu` names: numbers into the visible ones, or all of them.

    Raises:
        RunError: there is none, or none of that number.
        ValueError: neither numbers nor "all".
    """
    there = visible(variable)
    source = "CUDA_VISIBLE_DEVICES" if variable is not None else "nvidia-smi"
    if not there:
        raise RunError(f"--gpu {wanted}: this machine has no GPU ({source} names none); leave out --gpu to serve without one")
    if wanted == "all":
        return there
    numbers = [int(part) for part in wanted.split(",")]
    beyond = [number for number in numbers if not 0 <= number < len(there)]
    if beyond:
        raise RunError(f"--gpu {wanted}: there is no GPU number {beyond[0]}; {source} names {', '.join(there)}")
    return [there[number] for number in numbers]
