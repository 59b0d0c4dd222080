"""Bugs planted on purpose: each breaks one rule of the protocol or one step of the code, and has to be caught."""

# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTATIONS", "Mutation"]


@dataclass(frozen=True)
class Mutation:
    """One bug: in a file, this text becomes that text."""

    name: str
    file: str
    old: str
    new: str
    #: Test, and flags for pytest, that catch it: simulation seldom meets the broken case, or does not show it.
    test: str = ""


_QUEUE = "chainette/fleet/memory/memory_queue.py"
_RUN = "chainette/fleet/memory/memory_run.py"
_STRIKES = "chainette/fleet/memory/strikes.py"
_STATES = "chainette/fleet/protocol/queue_values.py"
_FLOW = "chainette/core/flow.py"
_DURABLE = "chainette/core/durable.py"
_JOINING = "chainette/core/joining.py"
_WRITER = "chainette/io/rundir/writer.py"
_LOG = "chainette/io/rundir/event_log.py"
_SHARDS = "chainette/io/rundir/shards.py"
_RECOVERY = "chainette/io/rundir/shard_recovery.py"
_SEALING = "chainette/io/rundir/sealing.py"
_FORK = "chainette/io/rundir/fork.py"
_DEPENDENTS = "chainette/io/rundir/dependents.py"
_WORKER = "chainette/run/unit_worker.py"
_SINK = "workers/chainette_workers/sink/sink.py"
_DRIVE = "workers/chainette_workers/sink/drive.py"
_CONTRACT = "tests/integration/test_queue_contract.py -k memory"

MUTATIONS = (
    # the queue
    Mutation(
        "a claim that does not hold commits",
        _QUEUE,
        "and claim.token and job.token == claim.token and",
        "and job.token and",
        _CONTRACT,
    ),
    Mutation(
        "calls of an old epoch are served",
        _QUEUE,
        "if found is None or found.keys.epoch != epoch:",
        "if found is None:",
        _CONTRACT,
    ),
    Mutation(
        "an epoch that is not newer is installed", _QUEUE, "if known and known.keys.epoch >= epoch:", "if False:", _CONTRACT
    ),
    Mutation(
        "anybody may acknowledge",
        _QUEUE,
        'if run.owner != owner or place is None:\n            raise Lost(f"ack',
        'if place is None:\n            raise Lost(f"ack',
        _CONTRACT,
    ),
    Mutation(
        "the anchor's token is not compared", _RUN, "(found.id, found.token) == position", "found.id == position[0]", _CONTRACT
    ),
    Mutation(
        "credit is returned twice",
        _RUN,
        "            self.live_rows -= live.live_rows\n",
        "            self.live_rows -= 2 * live.live_rows\n",
        _CONTRACT,
    ),
    Mutation("credit is never returned", _RUN, "            self.live_rows -= live.live_rows\n", "", _CONTRACT),
    Mutation(
        "the number of a part is not checked",
        _QUEUE,
        "        if job.part != claim.part:\n            return False  # maybe",
        "        if False:\n            return False  # maybe",
        _CONTRACT,
    ),
    Mutation("a repeated part is refused", _QUEUE, "return job is not None and job.done == token", "return False", _CONTRACT),
    Mutation(
        "a part drops a row of the remainder",
        _STATES,
        "return replace(self, unit=_with_rows(self.unit, left), part",
        "return replace(self, unit=_with_rows(self.unit, left[1:]), part",
        _CONTRACT,
    ),
    Mutation(
        "a part leaves its rows in the unit",
        _RUN,
        "job.unit, job.unfinished, job.part, job.done = rest.unit, rest.unfinished, job.part + 1, token",
        "job.unfinished, job.part, job.done = rest.unfinished, job.part + 1, token",
        _CONTRACT,
    ),
    Mutation(
        "a unit that is handed back is not queued",
        _RUN,
        "(queue.append if last else queue.appendleft)(job.name)",
        "(queue if job.solo else deque()).appendleft(job.name)",
        _CONTRACT,
    ),
    Mutation(
        "nobody reaps dead workers",
        _QUEUE,
        "for name, worker in self._workers.items() if worker.until <= now]",
        "for name, worker in self._workers.items() if worker.until < 0]",
        _CONTRACT,
    ),
    Mutation(
        "strikes count twice",
        _STRIKES,
        "setattr(job, counter, getattr(job, counter) + 1)",
        "setattr(job, counter, getattr(job, counter) + 2)",
        _CONTRACT,
    ),
    Mutation(
        "a lost unit's scope is not looked at",
        _RUN,
        "        if live is None or job.name not in live.members.get(scope, ()):\n",
        "        if False:\n",
        _CONTRACT,
    ),
    Mutation(
        "lost units are never missed",
        _RUN,
        "if not job.token or name not in hands.get(job.holder, ()):",
        "if False:",
        _CONTRACT,
    ),
    Mutation(
        "a root is admitted wherever the cursor is",
        _QUEUE,
        "        if run.cursor != k:\n            return AdmissionResult.BEHIND\n",
        "",
        _CONTRACT,
    ),
    Mutation("the window is not kept", _QUEUE, "if run.roots and run.is_full:", "if False:", _CONTRACT),
    Mutation(
        "a join does not wait for its branches",
        _RUN,
        "        if members:\n            return False\n",
        "        if members and not unit.scope:\n            return False\n",
        _CONTRACT,
    ),
    Mutation(
        "units that grow together lose rows",
        _RUN,
        "job.unit = msgspec.structs.replace(unit, rows=rows)",
        "job.unit = msgspec.structs.replace(unit, rows=unit.rows)",
        _CONTRACT,
    ),
    Mutation(
        "a worker gives back what it works on",
        _QUEUE,
        "job.token == claim.token and job.part >= claim.part:\n                continue",
        "job.token == claim.token and job.part >= claim.part:\n                pass",
        _CONTRACT,
    ),
    Mutation(
        "the end of the input is set whatever was admitted",
        _QUEUE,
        "        if run.cursor == total:\n            run.total = total\n",
        "        run.total = total\n",
        _CONTRACT,
    ),
    # the walk of rows
    Mutation(
        "rejected rows are asked again at a resume",
        _DURABLE,
        "            if row_id in rejected:\n                stopped.append(row_id)\n            elif (found",
        "            if (found",
    ),
    Mutation(
        "dropped rows are asked again at a resume",
        _DURABLE,
        "            elif row_id not in dropped:\n",
        "            else:\n",
    ),
    Mutation(
        "joined rows are in the order of their text",
        _JOINING,
        "ordered = sorted(rows, key=lambda row: row_order(row.row_id))",
        "ordered = sorted(rows, key=lambda row: row.row_id)",
        "tests/integration/test_semantics_flow.py",
    ),
    Mutation(
        "a rejection in a joined branch does not stop its row",
        _JOINING,
        "if row.row_id in lost or None in values.values():",
        "if None in values.values():",
    ),
    # the directory
    Mutation(
        "the log mentions rows before they are synced",
        _WRITER,
        "            for stream in self._streams.values():\n                stream.sync()\n        return self.record(events)\n",
        "            pass\n        logged = self.record(events)\n        for stream in self._streams.values():\n            stream.sync()\n        return logged\n",
    ),
    Mutation(
        "the log is not synced",
        _LOG,
        '                write_all(self._file, b"".join(lines))\n                os.fsync(self._file)\n',
        '                write_all(self._file, b"".join(lines))\n',
    ),
    Mutation("shards are not synced", _SHARDS, "                os.fsync(journal.file)\n", "                pass\n"),
    Mutation(
        "new shards are not synced into their folder",
        _SHARDS,
        "        fsync_dir(self.directory)\n        fsync_dir(self.directory.parent)\n        return self._open\n",
        "        return self._open\n",
    ),
    Mutation(
        "recovery leaves rows that the log does not mention",
        _RECOVERY,
        "            _truncate(stream.journal(number), size)\n",
        "            pass\n",
    ),
    Mutation(
        "recovery leaves shards that the log does not mention",
        _RECOVERY,
        "            if path not in known:\n                path.unlink()\n",
        "            pass\n",
        "tests/unit/io/rundir/test_shard_recovery.py",
    ),
    Mutation(
        "recovery leaves the torn end of the log",
        _LOG,
        "            os.ftruncate(self._file, offset)\n            os.fsync(self._file)\n",
        "            pass\n",
        "tests/unit/io/rundir/test_event_log.py",
    ),
    Mutation("a write that failed stays in the log", _LOG, "            self._take_back(start, seq)\n", ""),
    Mutation(
        "a journal is deleted before the log says that its shard is sealed",
        _WRITER,
        "        logged = self.record([event for _, _, event in sealed])\n        for stream, number, _ in sealed:\n            self._sealer.sweep(stream, number)\n",
        "        for stream, number, _ in sealed:\n            self._sealer.sweep(stream, number)\n        logged = self.record([event for _, _, event in sealed])\n",
        "tests/integration/test_crash_recovery.py",
    ),
    Mutation(
        "a row is asked again from number 1 after a retry",
        "chainette/run/steps.py",
        "row.asks + before.asks + 1",
        "before.asks + 1",
    ),
    Mutation(
        "a retry counts its row twice",
        _FORK,
        "            taken=event.taken - gone,\n",
        "            taken=event.taken,\n",
        "tests/integration/test_retry.py",
    ),
    Mutation(
        "a retry leaves its root complete",
        _FORK,
        "root_done=None if is_open else event.root_done,",
        "root_done=event.root_done,",
    ),
    Mutation(
        "bad lines are rejected again at a resume", "chainette/run/coordinator.py", "if rejection.row_id not in known]", "]"
    ),
    Mutation(
        "a run may be called finished although the log has gaps",
        _WRITER,
        "if gaps := self.state.gaps(records):",
        "if False:",
        "tests/integration/test_finished.py",
    ),
    # workers and the sink
    Mutation(
        "a worker goes on with a claim that was refused",
        _WORKER,
        "            self.refused(held)\n            held.lose()\n",
        "            self.refused(held)\n",
        "tests/unit/run/test_unit_worker.py",
    ),
    Mutation(
        "what was refused is counted as used",
        _WORKER,
        "if not is_in and held.unanswered is None and held.result is not None and not may_be_in:",
        "if held.result is not None:",
        "tests/unit/run/test_unit_worker.py",
    ),
    Mutation(
        "the local sink acknowledges before rows are durable",
        "chainette/run/local_sink.py",
        "        committed = await self._commit(events, entries)\n",
        '        if entries:\n            self.queue.ack(self.keys, "", self._position, finished_roots(entries))\n        committed = await self._commit(events, entries)\n',
    ),
    Mutation(
        "the sink takes whatever the queue gives it",
        "workers/chainette_workers/sink/acceptance.py",
        "if not self._has_pending(node, ended):",
        "if False:",
    ),
    Mutation(
        "the sink believes the queue that a root is done",
        "workers/chainette_workers/sink/acceptance.py",
        "if entry.done and left:",
        "if False:",
        "tests/unit/workers/sink/test_acceptance.py",
    ),
    Mutation(
        "an acknowledgement whose reply was lost is forgotten",
        _SINK,
        "        if self._doubted:\n            self._settle()\n",
        "",
        "tests/integration/test_fleet_model.py",
    ),
    Mutation(
        "a sink attaches wherever the stream is",
        _QUEUE,
        "if found.damaged or found.stream.place(position) is None:",
        "if False:",
        _CONTRACT,
    ),
    Mutation(
        "a decision is made again at a resume",
        _FLOW,
        "pending, passed, stopped = self.durable.divide(node.id, rows)\n",
        "pending, passed, stopped = (rows, [], []) if node.kind is NodeKind.DECISION else self.durable.divide(node.id, rows)\n",
    ),
    Mutation(
        "of equal rounds of a loop the last is best",
        "chainette/core/loop.py",
        "(known is not None and known >= score)",
        "(known is not None and known > score)",
        "tests/integration/test_loops.py -k equal_rounds",
    ),
    Mutation(
        "--from keeps the later rounds of a loop",
        _DEPENDENTS,
        "ways = [str(node.round.number + 1)]",
        "ways = []",
        "tests/integration/test_loops_resumed.py -k test_from",
    ),
    Mutation(
        "nobody looks for units that are lost",
        _DRIVE,
        "        if words := sink.missing():\n",
        "        if False and (words := sink.missing()):\n",
        "tests/integration/test_lost_keys.py -k looked_for",
    ),
    Mutation(
        "nobody tells a queue that went back where the input ends",
        _DRIVE,
        "coordinator.finished and sink.progress.total is None:",
        "False:",
        "tests/integration/test_lost_keys.py -k said_again",
    ),
)
