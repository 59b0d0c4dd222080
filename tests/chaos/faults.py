"""The faults of a fleet. Each acts on a site, lasts a moment, and heals itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import redis

from chainette.fleet.protocol.queue_values import LEASE
from tests.chaos.site import Site
from tests.support.processes import children

__all__ = ["FAULTS", "Fault"]

Fault = Callable[[Site], None]


def _worker(site: Site) -> subprocess.Popen[bytes] | None:
    alive = [process for process in site.workers.values() if process.poll() is None]
    return site.rng.choice(alive) if alive else None


def _any(site: Site) -> subprocess.Popen[bytes] | None:
    alive = [process for process in site.processes if process.poll() is None]
    return site.rng.choice(alive) if alive else None


def kill_a_worker(site: Site) -> None:
    if (victim := _worker(site)) is not None:
        site.kill(victim)


def kill_the_sink(site: Site) -> None:
    if site.driver is not None and site.driver.poll() is None:
        site.kill(site.driver)


def terminate(site: Site) -> None:
    if (victim := _any(site)) is not None:
        victim.send_signal(signal.SIGTERM)


def kill_a_child(site: Site) -> None:
    """A process that runs functions for a worker."""
    if (victim := _worker(site)) is not None and (found := children(victim.pid)):
        with suppress(ProcessLookupError):
            os.kill(site.rng.choice(found), signal.SIGKILL)


def _stop(victim: subprocess.Popen[bytes] | None) -> None:
    """SIGSTOP for longer than the lease: it wakes and goes on as if it still held its units."""
    if victim is None:
        return
    with suppress(ProcessLookupError):
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(LEASE + 1.5)
        os.kill(victim.pid, signal.SIGCONT)


def stop_a_worker(site: Site) -> None:
    _stop(_worker(site))


def stop_the_sink(site: Site) -> None:
    _stop(site.driver if site.driver is not None and site.driver.poll() is None else None)


def kill_valkey(site: Site) -> None:
    site.server.kill()
    time.sleep(site.rng.random())
    site.server.start()


def freeze_valkey(site: Site) -> None:
    site.server.freeze()
    time.sleep(site.rng.uniform(0.5, 3.0))
    site.server.thaw()


def empty_valkey(site: Site) -> None:
    with suppress(redis.RedisError):
        site.server.client().flushall()


def roll_valkey_back(site: Site) -> None:
    """Back to its state of some seconds ago, as after a restored backup."""
    data, copy = site.folder / "valkey" / "data", site.folder / "backup"
    _copy(data / "appendonlydir", copy)
    time.sleep(site.rng.uniform(0.5, 4.0))
    site.server.kill()
    shutil.rmtree(data / "appendonlydir")
    shutil.copytree(copy, data / "appendonlydir")
    site.server.start()


def _copy(folder: Path, copy: Path) -> None:
    """Copies all files of a moment."""
    while True:
        shutil.rmtree(copy, ignore_errors=True)
        with suppress(shutil.Error):  # a file was replaced meanwhile
            shutil.copytree(folder, copy)
            return


def fill_valkey(site: Site) -> None:
    """Over its memory limit: it refuses every write."""
    with suppress(redis.RedisError):
        site.server.client().config_set("maxmemory", 1)
    time.sleep(site.rng.uniform(0.5, 3.0))
    with suppress(redis.RedisError):
        site.server.client().config_set("maxmemory", 0)


def lose_the_reply_to_a_commit(site: Site) -> None:
    """The commit takes effect; its caller sees a broken connection."""
    site.proxy.lose_reply_to(b"entry_token")
    time.sleep(0.5)


def lose_all_replies(site: Site) -> None:
    site.proxy.drop_replies()
    time.sleep(site.rng.uniform(0.2, 2.0))
    site.proxy.heal()


def cut_connections(site: Site) -> None:
    site.proxy.reset()


def refuse_connections(site: Site) -> None:
    site.proxy.refuse()
    time.sleep(site.rng.uniform(0.2, 3.0))
    site.proxy.heal()


def hold_the_network(site: Site) -> None:
    """Nothing arrives for a while, and then all of it."""
    site.proxy.blackhole()
    time.sleep(site.rng.uniform(0.5, LEASE + 2.0))
    site.proxy.heal()


def shift_a_clock(site: Site) -> None:
    """A worker begins whose clock is an hour off."""
    site.skew = site.rng.choice([-3600.0, 3600.0])
    if (victim := _worker(site)) is not None:
        site.kill(victim)


def fill_the_disk(site: Site) -> None:
    """The sink cannot write for a while; it may end, and is resumed."""
    if site.driver is not None and site.driver.poll() is None:
        with suppress(ProcessLookupError):
            site.disk.fill(site.driver)
            time.sleep(site.rng.uniform(0.5, 2.0))
        site.disk.empty()


#: Name in the counts -> (the fault, how often beside others).
FAULTS: dict[str, tuple[Fault, int]] = {
    "kill -9 of a worker": (kill_a_worker, 5),
    "kill -9 of the sink": (kill_the_sink, 3),
    "kill -9 of a function's process": (kill_a_child, 2),
    "SIGTERM": (terminate, 3),
    "a worker stopped for longer than its lease": (stop_a_worker, 2),
    "the sink stopped for longer than a lease": (stop_the_sink, 1),
    "kill -9 of Valkey": (kill_valkey, 3),
    "Valkey frozen": (freeze_valkey, 2),
    "Valkey emptied": (empty_valkey, 2),
    "Valkey rolled back": (roll_valkey_back, 2),
    "Valkey over its memory limit": (fill_valkey, 2),
    "a lost reply to a commit": (lose_the_reply_to_a_commit, 5),
    "all replies lost": (lose_all_replies, 3),
    "connections cut": (cut_connections, 4),
    "connections refused": (refuse_connections, 2),
    "the network held": (hold_the_network, 2),
    "a clock off by an hour": (shift_a_clock, 2),
    "disk full at the sink": (fill_the_disk, 3),
}
