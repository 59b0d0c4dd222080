"""Chains by reference: a run's plan from the files on this machine's disk, if it is the one that was enqueued.

Redis has digests of the files, parameters and nodes. They are only compared with the files here; nothing from Redis is loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chainette.core.plan import Plan
from chainette.core.usercode.confined import ChainClaim, ClaimRefused
from chainette.core.usercode.loading import load_chain
from chainette.core.usercode.parameters import Offered, agreed, set_flags
from chainette.errors import ChainetteError, ParameterError
from chainette.fleet.protocol.run_fields import RunInfo
from chainette.fleet.protocol.seals import NoKey, Seals
from chainette.io.rundir.chain_marks import Marks, differences, marks_of, other_nodes
from chainette.run.options import RunOptions
from chainette.run.planning import compile_plan

__all__ = ["ChainDiffers", "Chains", "Reference"]

K = TypeVar("K")
V = TypeVar("V")

#: The most chains that are remembered, so that the next run of one of them needs no load.
_MOST = 16


@dataclass(frozen=True)
class Reference:
    """Everything that decides a plan: equal references make equal plans."""

    chain: str
    digest: str
    batch_size: int
    simulate: bool
    #: The files the digest covers.
    files: tuple[str, ...] = ()
    #: (name, digest) of every engine.
    engines: tuple[tuple[str, str], ...] = ()
    #: Values of the parameters, and marks of the nodes (io/rundir/chain_marks.py): JSON, as Redis has it.
    parameters: str = "{}"
    marks: str = "{}"
    dedupe: bool = False

    @classmethod
    def of(cls, info: RunInfo) -> Reference:
        """The reference in a run's record.

        Raises:
            ChainDiffers: a field of the record is missing or damaged.
        """
        if info.damage:
            raise ChainDiffers(f"is unknown: the record of the run in Redis is damaged ({info.damage})")
        engines = tuple(sorted((info.engines or {}).items()))
        batch, simulate = info.batch_size or 1, bool(info.simulate)
        words = info.parameters, info.marks
        return cls(info.chain_ref, info.digest, batch, simulate, info.files, engines, *words, info.dedupe)


@dataclass
class Chains:
    """Plans by reference; runs of the same chain share one. The last ones are remembered. The modules of a chain go with the
    last use of its plan."""

    root: Path
    #: Engines that are served: only they must be those of the run.
    names: Container[str]
    #: A YAML file whose engines replace those of the chains.
    engines_file: str | None
    #: Called with the reason why a run is not served, when that changes; "" when the run is served after all.
    refuse: Callable[[RunInfo, str], None] = lambda _info, _why: None
    #: Values that parameters may have here.
    parameters: Offered = field(default_factory=dict)
    #: Modules a run may name as its chain.
    modules: tuple[str, ...] = ()
    seals: Seals = field(default_factory=NoKey)
    _plans: dict[Reference, Plan] = field(default_factory=dict)
    #: The last load of a chain, by everything but its engines and nodes.
    _loads: dict[Reference, _Load] = field(default_factory=dict)
    #: Run -> the reason why it is not served.
    _refused: dict[str, str] = field(default_factory=dict)

    def plan_of(self, info: RunInfo) -> Plan | None:
        """The run's plan; None if this machine has no such chain, or a different one."""
        try:
            if fault := info.seal_fault(self.seals):
                raise ChainDiffers(fault)
            plan = self.plan(Reference.of(info))
        except ChainetteError as error:
            why = f"cannot be loaded here: {error}"
        except (ValueError, RecursionError) as error:
            why = f"is unknown: the record of the run in Redis does not decode ({error})"
        except ChainDiffers as error:
            why = str(error)
        except Exception as error:  # of one run; others are served
            why = f"cannot be served here: {type(error).__name__}: {error}"
        else:
            if self._refused.pop(info.run, ""):
                self.refuse(info, "")
            return plan
        self._tell(info, why)
        return None

    def forget(self, info: RunInfo) -> None:
        """The files are looked at again when the plan is asked for."""
        with suppress(ChainDiffers):
            self._plans.pop(Reference.of(info), None)

    def keep(self, runs: Collection[str]) -> None:
        """Forgets the reasons why other runs than these were not served."""
        self._refused = {run: why for run, why in [*self._refused.items()] if run in runs}

    def plan(self, reference: Reference) -> Plan:
        """The plan of a reference.

        Raises:
            ChainDiffers: the files, the parameters, an engine's settings or the nodes are different here.
            ChainetteError: they cannot be loaded.
        """
        plan = self._plans.get(reference)
        if plan is None:
            load = self._load(reference)
            for name, digest in reference.engines:
                if name in self.names and name in load.plan.engines:
                    hint = "; give the worker the same --engines FILE"
                    _require(f"engine {name!r} ", load.plan.engines[name].digest, digest, hint)
            self._require_nodes(load.plan, msgspec.json.decode(reference.marks, type=Marks))
            plan = load.plan
        return _remembered(self._plans, reference, plan)

    def _load(self, reference: Reference) -> _Load:
        """The chain as its files are now, which have the digest; loaded and compiled once, as long as they do not change."""
        key = replace(reference, engines=(), marks="")
        load = self._loads.get(key)
        if load is None or load.stamp != _stamp(load.files):
            load = self._fresh(reference)
        return _remembered(self._loads, key, load)

    def _fresh(self, reference: Reference) -> _Load:
        wanted = msgspec.json.decode(reference.parameters, type=dict[str, Any])
        try:
            claim = ChainClaim(reference.digest, reference.files, self.modules)
            loaded = load_chain(reference.chain, self.root, agreed(wanted, self.parameters), claim)
        except ClaimRefused as error:
            raise ChainDiffers(str(error)) from error
        except ParameterError as error:
            raise ChainDiffers(f"{error}; start the worker with {set_flags(wanted)}") from error
        options = RunOptions(
            batch_size=reference.batch_size,
            simulate=reference.simulate,
            dedupe=reference.dedupe,
            engines_file=self.engines_file,
        )
        try:
            _require("", loaded.digest, reference.digest, "")
            plan = compile_plan(loaded.chain, options)
        except BaseException:
            loaded.forget()
            raise
        weakref.finalize(plan, loaded.forget).atexit = False
        files = [*loaded.files, *([Path(self.engines_file)] if self.engines_file else [])]
        return _Load(plan, tuple(files), _stamp(files))

    def _require_nodes(self, plan: Plan, there: Marks) -> None:
        served = {name for name, node in plan.nodes.items() if any(engine in self.names for engine in node.engines)}
        found = differences(marks_of(plan), there, served)
        if found:
            raise ChainDiffers(other_nodes(found))

    def _tell(self, info: RunInfo, why: str) -> None:
        words = f"{info.chain_ref or 'its chain'} {why}"
        if self._refused.get(info.run) != words:
            self._refused[info.run] = words
            self.refuse(info, words)


@dataclass(frozen=True)
class _Load:
    """A chain as it was loaded here."""

    plan: Plan
    files: tuple[Path, ...]
    #: Shows whether the files have changed since.
    stamp: tuple[tuple[int, int], ...]


def _remembered(found: dict[K, V], key: K, value: V) -> V:
    """Makes a value the last one, and forgets the first one if there are too many."""
    found.pop(key, None)
    found[key] = value
    if len(found) > _MOST:
        found.pop(next(iter(found)), None)
    return value


def _stamp(files: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Times and sizes; (0, 0) for a file that is gone."""
    return tuple(_time_and_size(file) for file in files)


def _time_and_size(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


class ChainDiffers(Exception):
    """The files, the parameters, an engine's settings or the nodes are not those that were enqueued."""


def _require(what: str, here: str, there: str, hint: str) -> None:
    if here != there:
        raise ChainDiffers(f"{what}has digest {here[:12]} here, but {there[:12]} where it was enqueued{hint}")
