"""Scenarios in which a promise was once broken, as they shrank. Each is followed by the mend."""

from __future__ import annotations

from tests.simulation.scenario import Scenario
from tests.simulation.world import Fault
from tests.support.drawn import Element, Node, Way

__all__ = ["FOUND"]

_ONE: tuple[Element, ...] = (Node("n2", "many", 265),)

FOUND = (
    # a new directory whose log could not be synced kept its lock as long as the process lived
    Scenario(99, _ONE, (540,), 4, "jsonl", 100, None, 1, (Fault("disk", 3, "disk full", 0.969),)),
    # killed within the first line of the log, a directory could be neither begun nor resumed
    Scenario(2, _ONE, (540, 7), 2, "jsonl", 100, 2, 0, (Fault("disk", 3, "killed within a disk call", 0.5),)),
    # a queue that went back to before the end of the input was known let its run wait for ever
    Scenario(5, _ONE, (540, 7, 8), 2, "jsonl", 100, None, 1, (Fault("queue", 40, "queue rolled back", 0.9),)),
    # a queue that went back to before an acknowledgement, without an error, kept the window full for ever
    Scenario(
        569, (Node("n2", "one", 265),), (1, 2, 5, 8), 1, "jsonl", 100, 1, 1, (Fault("queue", 54, "queue rolled back", 0.3),)
    ),
    # a sink that lost Redis between the records of two roots took the first for opened
    Scenario(
        20040,
        (Node("n1", "one", 579), Node("n2", "many", 958), Node("n3", "ask", 262, 2)),
        (320, 501, 323, 484, 309),
        2,
        "jsonl",
        3,
        3,
        1,
        (Fault("queue", 48, "request late", 0.786), Fault("turn", 62, "main killed"), Fault("turn", 114, "main killed")),
    ),
    # `--from` on a full disk kept open the shards it had begun
    Scenario(
        117,
        ((Way("b1", "", (Node("n2", "optional", 257),)), Way("b3", "", (Node("n4", "ask", 441, 3),))),),
        (614, 318, 472, 763),
        1,
        "jsonl",
        1,
        1,
        0,
        (Fault("disk", 166, "disk full", 0.73),),
        ("from n4",),
    ),
    # a unit that waited until its engine would answer, and whose queue was lost meanwhile, was never missed (seed 7125)
    Scenario(
        7125,
        (Node("n3", "ask", 262, 2),),
        (320,),
        1,
        "jsonl",
        100,
        None,
        1,
        (Fault("open", 1, "engine down", 0.68), Fault("queue", 20, "key lost", 0.56)),
    ),
)
