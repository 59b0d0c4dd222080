"""Chains by reference: a run's plan out of the files on this machine's disk, if they are those that were enqueued."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from chainette.core.loading import load_chain
from chainette.core.plan import Plan
from chainette.errors import ChainetteError
from chainette.fleet.states import RunInfo
from chainette.options import RunOptions
from chainette.session import compile_plan

__all__ = ["ChainDiffers", "Chains", "Reference"]


@dataclass(frozen=True)
class Reference:
    """What must be known to make a plan: equal references make equal plans."""

    chain: str
    digest: str
    batch_size: int
    simulate: bool
    #: (name, digest) of every engine.
    engines: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, info: RunInfo) -> Reference:
        """What Redis says of a run."""
        fields = info.fields
        engines = msgspec.json.decode(fields["engines"], type=dict[str, str])
        simulate = fields["simulate"] == "1"
        return cls(fields["chain_ref"], fields["digest"], int(fields["batch_size"]), simulate, tuple(sorted(engines.items())))


@dataclass
class Chains:
    """Plans by reference; runs of the same chain share one."""

    root: Path
    #: Engines that are served: only they must be those of the run.
    names: Container[str]
    #: A YAML file whose engines replace those of the chains.
    engines_file: str | None
    #: Told why a run is not served, when that is another reason than before; "" where it is served after all.
    refuse: Callable[[RunInfo, str], None] = lambda _info, _why: None
    _plans: dict[Reference, Plan] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)

    def plan_of(self, info: RunInfo) -> Plan | None:
        """The run's plan; None where this machine has no such chain, or another one."""
        try:
            plan = self.plan(Reference.of(info))
        except ChainetteError as error:
            why = f"cannot be loaded here: {error}"
        except (KeyError, ValueError) as error:
            why = f"cannot be known: Redis says too little of the run ({error})"
        except ChainDiffers as error:
            why = str(error)
        else:
            if self._refused.pop(info.run, ""):
                self.refuse(info, "")
            return plan
        self._tell(info, why)
        return None

    def forget(self, info: RunInfo) -> None:
        """The files are looked at again when the plan is asked for."""
        self._plans.pop(Reference.of(info), None)

    def plan(self, reference: Reference) -> Plan:
        """The plan of a reference.

        Raises:
            ChainDiffers: the files, or an engine's settings, are others here.
            ChainetteError: they cannot be loaded.
        """
        if reference not in self._plans:
            loaded = load_chain(reference.chain, self.root)
            _require("", loaded.digest, reference.digest, "")
            options = RunOptions(batch_size=reference.batch_size, simulate=reference.simulate, engines_file=self.engines_file)
            plan = compile_plan(loaded.chain, options)
            for name, digest in reference.engines:
                if name in self.names and name in plan.engines:
                    hint = "; give the worker the same --engines FILE"
                    _require(f"engine {name!r} ", plan.engines[name].digest, digest, hint)
            self._plans[reference] = plan
        return self._plans[reference]

    def _tell(self, info: RunInfo, why: str) -> None:
        words = f"{info.fields.get('chain_ref', 'its chain')} {why}"
        if self._refused.get(info.run) != words:
            self._refused[info.run] = words
            self.refuse(info, words)


class ChainDiffers(Exception):
    """The files, or an engine's settings, are not those that were enqueued."""


def _require(what: str, here: str, there: str, hint: str) -> None:
    if here != there:
        raise ChainDiffers(f"{what}has digest {here[:12]} here, and {there[:12]} where it was enqueued{hint}")
