"""Converts errors of the Hugging Face Hub to Chainette's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chainette.errors import ChainetteError

__all__ = ["hub_errors"]


@contextmanager
def hub_errors(name: str, kind: type[ChainetteError], fault: str) -> Iterator[None]:
    """Converts every error inside the block to a `kind`: `NAME: FAULT: reason`. Import the hub's libraries inside it too.

    Raises:
        kind: the hub refused the request or cannot be reached, or its package is not installed.
    """
    try:
        yield
    except (ChainetteError, MemoryError):
        raise
    except ImportError as error:
        raise kind(f"{name}: {fault}: the package {error.name} is missing: pip install 'chainette[hf]'") from error
    except Exception as error:  # datasets, huggingface_hub, fsspec and httpx each have their own errors
        errors = [error, *([error.__cause__] if error.__cause__ is not None else [])]
        texts = [" ".join(str(each).split()).rstrip(".") or type(each).__name__ for each in errors]
        words = ": ".join(dict.fromkeys(texts))  # a cause often says the same
        denied = any(getattr(getattr(each, "response", None), "status_code", None) in (401, 403) for each in errors)
        hint = "; log in with `hf auth login`, or set HF_TOKEN" if denied else ""
        raise kind(f"{name}: {fault}: {words}{hint}") from error
