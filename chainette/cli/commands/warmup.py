"""`chainette warmup`: whether an engine works, its answer, and the time and memory it took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson, ChainRoot, Declaring, EngineFile, OneEngine, Settings
from chainette.cli.launch import texts_of
from chainette.cli.printing import print_json, tell
from chainette.core.usercode.loading import load_chain
from chainette.core.usercode.parameters import given
from chainette.engine.base import Finish
from chainette.engine.cold_start import Warmth, warm_up
from chainette.engine.config import EngineConfig, EngineRegistry, simulated
from chainette.engine.http.http_options import HttpOptions
from chainette.engine.preflight import foreseen
from chainette.engine.registry import overlaid
from chainette.errors import EngineConfigError
from chainette.run.planning import registry_of
from chainette.utils.event_loop import run_loop
from chainette.utils.terminal_text import visible

__all__ = ["chosen", "registry_with", "warmth_lines", "warmup"]


@guarded
def warmup(
    chain: Declaring = None,
    engine: OneEngine = None,
    settings: Settings = None,
    engines: EngineFile = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Ask a simulated engine instead.")] = False,
    chain_root: ChainRoot = Path(),
    patience: Annotated[
        float, typer.Option("--engine-patience", metavar="SECONDS", min=0, help="How long to wait for a remote engine.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Open an engine of CHAIN or of --engines FILE, ask it once, and report the time that took.

    Downloads and loads the model as a run would. Exit codes: 0 it answers, 1 it does not, 2 its declaration
    is wrong.
    """
    config = chosen(registry_with(chain, engines, chain_root, settings), engine)
    if simulate:
        config = simulated(config)
    _require_openable(config)
    if as_json:
        warmth = run_loop(warm_up, config, patience)
        print_json([{"engine": config.name, "backend": config.backend, "model": config.model, **msgspec.to_builtins(warmth)}])
        return
    tell(f"engine {config.name}: {config.backend}, {config.model}")
    for line in warmth_lines(config, run_loop(warm_up, config, patience)):
        tell(line)


def _require_openable(config: EngineConfig) -> None:
    """Raises EngineConfigError with everything that the engine lacks on this machine."""
    head = f"engine {config.name!r}: "
    if found := [words.removeprefix(head) for words in foreseen(config)]:
        raise EngineConfigError(head + "; ".join(found))


def registry_with(chain: str | None, file: Path | None, chain_root: Path, settings: list[str] | None) -> EngineRegistry:
    """The registry that declares the engine.

    Raises:
        typer.BadParameter: neither a chain nor a file was named.
    """
    if chain is not None:
        return registry_of(load_chain(chain, chain_root, given(texts_of(settings))).chain, file)
    if file is not None:
        return overlaid(EngineRegistry(), file)
    raise typer.BadParameter("name the chain that declares the engine, or a file of engines with --engines")


def chosen(registry: EngineRegistry, name: str | None) -> EngineConfig:
    """The engine by name, or the only one.

    Raises:
        UnknownEngine: there is none of that name.
        typer.BadParameter: there is more than one, or none.
    """
    if name is not None:
        return registry.get(name)
    known = list(registry)
    if len(known) != 1:
        raise typer.BadParameter(f"--engine says which: {', '.join(config.name for config in known) or 'none is declared'}")
    return known[0]


def warmth_lines(config: EngineConfig, warmth: Warmth) -> Iterator[str]:
    """The report, line by line."""
    usage, seconds = warmth.completion.usage, warmth.answer_seconds
    rate = f", {usage.completion_tokens / seconds:.1f} tokens/s" if seconds else ""
    yield f"open: {warmth.open_seconds:.2f} s"
    yield f"first token: {warmth.first_seconds:.2f} s"
    yield f"answer: {seconds:.2f} s, {usage.prompt_tokens} + {usage.completion_tokens} tokens{rate}"
    yield f"text: {_one_line(warmth.completion.text)}{_flaw(warmth)}"
    if warmth.memory is not None and not isinstance(config.options, HttpOptions):
        yield f"memory: {warmth.memory / 1e6:,.0f} MB"
    for number, gpu in enumerate(warmth.gpus):
        yield f"GPU {number}: {gpu.used / 1e9:.1f} of {gpu.total / 1e9:.1f} GB"
    yield f"requests at once: {warmth.capacity}"
    for name, value in warmth.described.items():
        yield f"{name}: {_plain(value)}"


def _flaw(warmth: Warmth) -> str:
    """A remark about an answer that is cut or not a JSON object."""
    if warmth.completion.finish is Finish.LENGTH:
        return " (cut at 64 tokens)"
    return "" if warmth.completion.text.strip().startswith("{") else " (not the JSON object that was asked for)"


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
