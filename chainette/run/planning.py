"""From a chain and the options of a run to its plan."""

from __future__ import annotations

import os
from dataclasses import replace

from chainette.core.chain import Chain
from chainette.core.compile import compile_chain
from chainette.core.plan import Plan
from chainette.engine.budget import budgeted
from chainette.engine.config import EngineRegistry
from chainette.engine.price import priced
from chainette.engine.registry import overlaid
from chainette.run.options import RunOptions

__all__ = ["compile_plan", "registry_of"]


def compile_plan(chain: Chain | Plan, options: RunOptions) -> Plan:
    """The chain as the options say: with engines of a file, simulated, in roots of another size.

    A caller that has compiled it already hands in the plan, which stays as it is.
    """
    if isinstance(chain, Plan):
        return _priced(chain, options)
    registry = registry_of(chain, options.engines_file)
    simulate, batch_size, dedupe = options.simulate, options.batch_size, options.dedupe
    plan = compile_chain(chain, registry=registry, simulate=simulate, batch_size=batch_size, dedupe=dedupe)
    return _priced(replace(plan, parameters=options.parameters), options)


def _priced(plan: Plan, options: RunOptions) -> Plan:
    return replace(plan, engines=budgeted(priced(plan.engines, options.price), options.budget))


def registry_of(chain: Chain, engines_file: str | os.PathLike[str] | None) -> EngineRegistry:
    """The chain's engines, or those of a file in their place.

    Raises:
        EngineConfigError: the file cannot be read as engines.
    """
    return overlaid(chain.registry, engines_file) if engines_file else chain.registry
