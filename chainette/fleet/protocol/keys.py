"""Every Redis key Chainette uses; no other file spells one.

RQ's own keys keep RQ's names, so that `rq info` and dashboards read them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote

__all__ = [
    "LEASES",
    "RUNS",
    "SPENT",
    "WORKERS",
    "RunKeys",
    "aside",
    "engine_of",
    "held",
    "rq_job",
    "rq_queue",
    "rq_scheduled",
    "stop",
    "word",
    "worker",
]

#: Set of run ids that are not closed.
RUNS = "chainette:runs"

#: Sorted set: worker incarnation -> when its lease ends, by the server's clock.
LEASES = "chainette:lease"

#: Set of worker incarnations that have described themselves.
WORKERS = "chainette:workers"


#: Hash: digest of an engine with a budget -> the amounts that closed runs have spent of it. It stays; workers only read it.
SPENT = "chainette:spent"


def aside(run: str) -> str:
    """List of the messages of a run that were put aside, as JSON."""
    return f"chainette:aside:{run}"


def held(incarnation: str) -> str:
    """Set of job ids a worker has claimed."""
    return f"chainette:held:{incarnation}"


def stop(incarnation: str) -> str:
    """Key that is there once somebody asked a worker to end; workers only read it."""
    return f"chainette:stop:{incarnation}"


def worker(incarnation: str) -> str:
    """Hash in which a worker describes itself."""
    return f"chainette:worker:{incarnation}"


def rq_queue(name: str) -> str:
    """RQ's list of a queue's waiting jobs."""
    return f"rq:queue:{name}"


def rq_scheduled(name: str) -> str:
    """RQ's sorted set of a queue's delayed jobs, by the time they are due."""
    return f"rq:scheduled:{name}"


def rq_job(job: str) -> str:
    """RQ's hash of a job."""
    return f"rq:job:{job}"


def word(engine: str) -> str:
    """An engine's name (any text) as one word: percent-encodes everything but letters, digits, "_" and "-"."""
    return re.sub(r"[^\w-]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), engine)


def engine_of(queue: str) -> str:
    """The engine of a queue that `RunKeys.queue` named."""
    return unquote(queue.partition(".")[0])


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run in one epoch."""

    run: str
    epoch: int

    @property
    def state(self) -> str:
        """Hash: epoch, state, owner, cursor, window, live_rows, live_bytes, and the fields that workers need."""
        return f"chainette:run:{self.run}"

    @property
    def order(self) -> str:
        """The order to services, as JSON; workers only read it."""
        return f"chainette:order:{self.run}"

    @property
    def notes(self) -> str:
        """Side stream of events that may get lost."""
        return f"{self.state}:notes"

    @property
    def prefix(self) -> str:
        return f"chainette:{self.run}:{self.epoch}:"

    @property
    def stream(self) -> str:
        """Results, lossless; the last durable entry stays in it."""
        return f"{self.prefix}stream"

    def body(self, token: str) -> str:
        """The body of a stream entry, if it is so large it is stored separately."""
        return f"{self.prefix}e:{token}"

    @property
    def live(self) -> str:
        """Hash: root -> its number of rows, until it is acknowledged."""
        return f"{self.prefix}live"

    def solo(self, queue: str) -> str:
        """List of a queue's jobs that must run alone."""
        return f"{self.prefix}solo:{queue}"

    @property
    def asked(self) -> str:
        """List of questions for the answers of earlier runs; lives a minute after the last one."""
        return f"{self.prefix}asked"

    def found(self, token: str) -> str:
        """The reply to such a question; lives a minute."""
        return f"{self.prefix}found:{token}"

    def root(self, root: int) -> str:
        """The root's rows as they were admitted."""
        return f"{self.prefix}r:{root}"

    def queue(self, engine: str, node: str) -> str:
        """RQ's name of a node's queue: three words separated by dots."""
        return f"{word(engine)}.{node}.{self.run}"

    def job(self, node: str, root: int, part: str) -> str:
        """RQ's id of a unit's job: letters, digits, "_" and "-" only."""
        digest = hashlib.blake2b(f"{node}\0{part}".encode(), digest_size=8).hexdigest()
        return f"{self.run}_{self.epoch}_{root}_{digest}"
