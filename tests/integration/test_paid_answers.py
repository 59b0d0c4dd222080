"""Every answer that was paid is in the log once, however a local run ends: in the usage of its row, or as discarded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chainette import Chain, Step
from chainette.engine.base import Cause, Completion, Finish, Request
from chainette.errors import EngineUnavailable, RunStopped
from chainette.hooks import Hook
from chainette.records import Usage
from tests.support.asking_chains import events
from tests.support.chains import Text, texts
from tests.support.scripted import ask_of, row_of, scripted

#: An answer that is paid.
PAID = Usage(1, 1, 1)


class Teller(Hook):
    """Raises in its turn."""

    fails = False

    def on_answers(self, step_id: str, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        if self.fails:
            raise LookupError("a bug of the hook")


class Payments:
    """An engine whose answers, unusable ones and failures are drawn; after some of them, it brings the run to its end."""

    def __init__(self, seed: int, end: str) -> None:
        self.rng, self.end = random.Random(seed), end
        self.most = self.rng.choice((3, 17, 40, 90))
        self.paid, self.tries = 0, Counter[str]()
        self.hook = Teller()
        self.cancel: Callable[[], None]

    @property
    def is_over(self) -> bool:
        return self.paid >= self.most

    async def answer(self, request: Request) -> Completion:
        row = row_of(request)
        for _ in range(self.rng.randrange(4)):
            await checkpoint()
        if self.is_over:
            self.stop()
        if row == "probe":
            return self.pay("no JSON")
        kind = int(row) % 7  # 1: asked twice, 3: fails once, 4: asked twice and then paid in vain for ever
        self.tries[row] += 1
        if kind == 3 and self.tries[row] == 1:
            raise EngineUnavailable("503, once")
        if kind == 4 and ask_of(request) > 1:
            return self.pay("", Finish.FAILED)
        bad = (kind in (1, 4) and ask_of(request) == 1) or (self.end == "rejects" and self.is_over)
        return self.pay("no JSON" if bad else '{"text": "ok"}')

    def pay(self, text: str, finish: Finish = Finish.STOP) -> Completion:
        self.paid += 1
        return Completion(text, finish, usage=PAID, error="it broke off", cause=Cause.BROKEN)

    def stop(self) -> None:
        match self.end:
            case "engine":
                raise EngineUnavailable("gone")
            case "bug":
                raise LookupError("a bug of the engine")
            case "hook":
                self.hook.fails = True
            case "Ctrl-C":
                self.cancel()

    def run(self, directory: Path) -> None:
        """A run that ends in the way of `end`, or finishes before."""
        options: dict[str, Any] = {"engine_patience": 0.05, "hooks": [self.hook], "progress": False}
        if self.end == "budget":
            options["budget"] = f"{self.most}req"
        if self.end == "rejects":
            options["max_reject_rate"] = 0.2

        async def go(chain: Chain) -> None:
            with anyio.CancelScope() as scope:
                self.cancel = scope.cancel
                await chain.arun(texts(60), directory, **options)

        with scripted({"capacity": 16}, llm=self.answer):
            ask = Step(id="ask", input_model=Text, output_model=Text, engine_name="llm", user_prompt="{{ text }}")
            then = Step(id="then", output_model=Text, engine_name="llm")
            with suppress(RunStopped, LookupError):
                anyio.run(go, Chain(name="paid", batch_size=5, steps=[ask, then]))


@pytest.mark.parametrize("end", ["engine", "Ctrl-C", "budget", "rejects", "hook", "bug"])
def test_every_paid_answer_is_in_the_log_however_a_run_ends(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette.run.in_flight._FIRST_REST", 0.001)
    monkeypatch.setattr("chainette.run.in_flight._LONGEST_REST", 0.002)
    monkeypatch.setattr("chainette.run.unit_worker._FIRST_WAIT", 0.001)
    monkeypatch.setattr("chainette.run.limits._SAMPLE", 10)
    for seed in range(6):
        payments, directory = Payments(seed, end), tmp_path / str(seed)
        payments.run(directory)
        usages = [usage for event in events(directory) if isinstance(usage := getattr(event, "usage", None), Usage)]
        assert sum(usage.prompt_tokens for usage in usages) == payments.paid, f"seed {seed}"
