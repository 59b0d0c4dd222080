"""Inputs and exports at an object store: a real S3 server, real commands, and links that break."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from csv import DictReader
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chainette import Chain, RunResult, apply, open_run
from chainette.errors import DamagedRun, InputError, RunDirectoryError, RunError
from chainette.hooks import Hook
from chainette.io.rundir.event_types import Event, UnitCommitted
from chainette.io.tables.exported_files import ExportFormat
from chainette.run.executor import resume
from tests.support.chains import Text
from tests.support.cli import Project
from tests.support.object_store import SECRET, Fault, ObjectStore, object_store, store, variables
from tests.support.patience import LONG
from tests.support.tools import some
from tests.support.valkey import Database

__all__ = ["object_store", "store"]


def same(item: Text) -> Text:
    return item


CHAIN = Chain(name="far", steps=[apply(same)], batch_size=5)


def words(letter: str, number: int) -> list[str]:
    return [f"{letter}{at}" for at in range(number)]


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def csv(*texts: str) -> bytes:
    return b"text\n" + b"".join(f"{text}\n".encode() for text in texts)


def parquet(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return bytes(sink.getvalue())


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return bytes(sink.getvalue())


def texts(directory: Path) -> list[str]:
    return [row["text"] for row in sorted(open_run(directory).rows("same"), key=lambda row: int(row["row_id"]))]


def holds_no_secret(directory: Path) -> bool:
    return SECRET.encode() not in b"".join(file.read_bytes() for file in directory.rglob("*") if file.is_file())


KINDS: dict[str, Callable[..., bytes]] = {
    "jsonl": lines,
    "jsonl.gz": lambda *texts: gzip.compress(lines(*texts)),
    "jsonl.zst": lambda *texts: zstd(lines(*texts)),
    "csv": csv,
    "csv.gz": lambda *texts: gzip.compress(csv(*texts)),
    "parquet": parquet,
}


@pytest.mark.parametrize(
    ("kind", "limit"), [*((kind, None) for kind in KINDS), ("jsonl.zst", 5), ("csv.gz", 5), ("parquet", 5)]
)
def test_every_format_is_read_from_one_object_a_folder_and_a_pattern(
    tmp_path: Path, store: ObjectStore, kind: str, limit: int | None
) -> None:
    for number in (1, 9, 10):
        store.put(f"bucket/in/{number}.{kind}", KINDS[kind](*words(f"{number}-", 3)))
    store.put("bucket/in/notes.txt", b"no input")
    for name, numbers in ((f"in/1.{kind}", [1]), ("in", [1, 9, 10]), ("in/", [1, 9, 10]), (f"in/1*.{kind}", [1, 10])):
        out = tmp_path / name.replace("/", "-").replace("*", "all")
        result = CHAIN.run(f"s3://bucket/{name}", out, limit=limit)
        assert texts(out) == [word for number in numbers for word in words(f"{number}-", 3)][:limit]
        assert result.metadata["input"]["urls"] == [f"s3://bucket/{name}"] and result.metadata["balanced"]
        assert holds_no_secret(out)


def test_a_limit_reads_one_large_object_only_as_far_as_it_needs_and_a_higher_one_reads_on(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [f"{at} {'x' * 1000}" for at in range(8_000)]
    url = store.put("bucket/large.jsonl", lines(*every))
    with store.link(lambda number, line: "") as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        CHAIN.run(url, tmp_path / "out", limit=7)
        assert texts(tmp_path / "out") == every[:7]
        assert link.carried < 4 << 20
        CHAIN.run(url, tmp_path / "out", limit=4_000, resume=True)
        assert texts(tmp_path / "out") == every[:4_000]
        store.put("bucket/large.jsonl", lines(*(f"new {text}" for text in every)))
        with pytest.raises(InputError, match=r"s3://bucket/large.jsonl has changed since the run began: .* begin a new run"):
            CHAIN.run(url, tmp_path / "out", limit=7_500, resume=True)
    found = texts(tmp_path / "out")  # also those that were copied before
    assert found == every[: len(found)] and 4_000 <= len(found) < 7_500


def test_a_limit_reads_only_as_many_objects_as_it_needs_and_a_higher_one_the_next(tmp_path: Path, store: ObjectStore) -> None:
    for number in range(6):
        store.put(f"bucket/in/{number}.parquet", parquet(*words(f"{number}-", 4)))
    every = [word for number in range(6) for word in words(f"{number}-", 4)]
    first = CHAIN.run("s3://bucket/in", tmp_path / "out", limit=6)
    assert texts(tmp_path / "out") == every[:6]
    assert sorted(file.name for file in (tmp_path / "out/inputs").iterdir()) == ["0-0.parquet", "1-1.parquet"]
    assert first.metadata["input"]["rest"] == [f"s3://bucket/in/{number}.parquet" for number in range(2, 6)]
    resume(tmp_path / "out", CHAIN, limit=14)
    assert texts(tmp_path / "out") == every[:14]
    assert sorted(file.name[:1] for file in (tmp_path / "out/inputs").iterdir()) == ["0", "1", "2", "3"]
    last = resume(tmp_path / "out", CHAIN, limit=1000)
    assert texts(tmp_path / "out") == every and "rest" not in last.metadata["input"] and last.metadata["balanced"]


class _Stop(Hook):
    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.root == 2:
            raise RuntimeError("stopped here")


def test_a_stopped_run_is_resumed_with_the_bytes_it_began_with(tmp_path: Path, store: ObjectStore) -> None:
    url = store.put("bucket/a.jsonl", lines(*words("a", 40)))
    with pytest.raises(RuntimeError, match="stopped here"):
        CHAIN.run(url, tmp_path / "out", hooks=(_Stop(),))
    store.put("bucket/a.jsonl", lines(*words("new", 40)))
    with pytest.raises(InputError, match=r"the run reads s3://bucket/a.jsonl, not s3://bucket/b.jsonl; begin a new run"):
        CHAIN.run("s3://bucket/b.jsonl", tmp_path / "out", resume=True)
    CHAIN.run(url, tmp_path / "out", resume=True)
    assert texts(tmp_path / "out") == words("a", 40)


def breaks(after: int, fault: str) -> Fault:
    """Requests for objects fail behind the first so many that succeed."""
    passed = iter(range(after))
    return lambda number, line: "" if not line.startswith("GET /bucket/") or next(passed, None) is not None else fault


@pytest.mark.parametrize("fault", ["cut", "forbid", pytest.param("drop", marks=pytest.mark.long)])
def test_an_object_that_breaks_off_costs_no_rows_and_the_run_goes_on_from_there(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    every = [f"{at} {'x' * 10_000}" for at in range(600)]
    url = store.put("bucket/a.jsonl", lines(*every))
    with store.link(breaks(1, fault)) as link, monkeypatch.context() as broken:
        broken.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        with pytest.raises(InputError, match=r"s3://bucket/a.jsonl: cannot be read: "):
            CHAIN.run(url, tmp_path / "out", limit=550)
    found = texts(tmp_path / "out")
    assert {*found} <= {*every} and 0 < len(found) < 550
    result = resume(tmp_path / "out", CHAIN)
    assert texts(tmp_path / "out") == every[:550] and result.metadata["balanced"]


@pytest.mark.parametrize("fault", ["cut", "forbid"])
def test_a_copy_that_breaks_off_leaves_no_run_and_the_same_command_makes_one(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for number in range(4):
        store.put(f"bucket/in/{number}.jsonl", lines(*words(f"{number}-", 4)))
    with store.link(breaks(2, fault)) as link, monkeypatch.context() as broken:
        broken.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        with pytest.raises(InputError, match=r"s3://bucket/in/\d.jsonl: cannot be read: "):
            CHAIN.run("s3://bucket/in", tmp_path / "out")
    with pytest.raises(DamagedRun, match=r"holds no run: .* repeat the command that began it"):
        resume(tmp_path / "out", CHAIN)
    CHAIN.run("s3://bucket/in", tmp_path / "out")
    assert texts(tmp_path / "out") == [word for number in range(4) for word in words(f"{number}-", 4)]


@pytest.mark.parametrize(
    ("url", "changes", "said"),
    [
        ("s3://bucket/none.jsonl", {}, "s3://bucket/none.jsonl: cannot be read: no such file"),
        ("s3://none/a.jsonl", {}, "s3://none/a.jsonl: cannot be read: .*(no such file|bucket does not exist)"),
        ("s3://none/*.jsonl", {}, "s3://none/*.jsonl: no file matches this pattern"),
        ("s3://bucket/a.jsonl", variables(1), "s3://bucket/a.jsonl: cannot be read: Could not connect to the endpoint URL"),
        ("s3://bucket/a.jsonl", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "a.jsonl: cannot be read: .*check the credentials"),
        ("s3://bucket/*.jsonl", {"AWS_ACCESS_KEY_ID": "nobody"}, "cannot be read: The Access Key Id .*AWS_ACCESS_KEY_ID and"),
        ("s3://bucket/a.jsonl", {"AWS_ACCESS_KEY_ID": ""}, "a.jsonl: cannot be read: Unable to locate credentials; check"),
        ("s3://me:hunter2@bucket/a.jsonl", {}, "s3://bucket/a.jsonl: cannot be read"),
        ("gs://bucket/a.jsonl", {}, "gs://bucket/a.jsonl: cannot be read: the package gcsfs is missing: pip install gcsfs"),
        ("az://bucket/a.jsonl", {}, "az://bucket/a.jsonl: cannot be read: the package adlfs is missing: pip install adlfs"),
    ],
)
def test_an_object_that_cannot_be_read_is_one_line_that_names_it_and_leaves_nothing(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, url: str, changes: dict[str, str], said: str
) -> None:
    store.put("bucket/a.jsonl", lines("a"))
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said.replace("*.jsonl", r"\*.jsonl")) as caught:
        CHAIN.run(url, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message and SECRET not in message and "hunter2" not in message
    assert not (tmp_path / "out").exists()


def test_a_key_that_may_read_an_object_needs_not_list_its_folder(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.put("bucket/in/a.jsonl", lines("a"))
    with store.link(lambda number, line: "" if line.endswith("a.jsonl") else "forbid") as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        CHAIN.run(url, tmp_path / "out")
        with pytest.raises(InputError, match=r"s3://bucket/in: cannot be read: Access Denied; check the credentials"):
            CHAIN.run("s3://bucket/in", tmp_path / "folder")
    assert texts(tmp_path / "out") == ["a"]


@pytest.mark.long
def test_commands_take_an_object_as_a_file(tmp_path: Path, store: ObjectStore) -> None:
    project = Project(tmp_path)
    first, second = store.put("bucket/a.jsonl", lines(*words("a", 6))), store.put("bucket/b.jsonl", lines(*words("b", 4)))
    plan = project.chainette("plan", "chain.py", first, "--simulate")
    assert plan.returncode == 0 and "6 records" in plan.stdout, plan.stderr
    done = project.chainette("run", "chain.py", first, "--simulate", "-o", "out")
    assert done.returncode == 0, done.stderr
    more = project.chainette("resume", "out", "--more", second)
    assert more.returncode == 0, more.stderr
    assert project.ids("out", "extract") == [str(at) for at in range(10)]
    assert open_run(tmp_path / "out").metadata["input"]["urls"] == [first, second]
    missing = project.chainette("run", "chain.py", "s3://bucket/none.jsonl", "--simulate", "-o", "none")
    assert missing.returncode == 1 and "s3://bucket/none.jsonl: cannot be read: no such file" in missing.stderr
    assert "Traceback" not in missing.stderr and not (tmp_path / "none").exists()
    refused = project.chainette("enqueue", "chain.py", "s3://me:hunter2@bucket/a.jsonl", "--detach", "-o", "far")
    assert refused.returncode == 1 and "s3://bucket/a.jsonl: services take relative paths" in refused.stderr
    assert "hunter2" not in refused.stderr
    assert holds_no_secret(tmp_path)


@pytest.mark.long
def test_workers_need_no_key_for_an_object_their_run_reads(tmp_path: Path, store: ObjectStore, database: Database) -> None:
    project = Project(tmp_path)
    store.put("bucket/a.jsonl", lines(*words("a", 30)))
    keyless = {"AWS_ACCESS_KEY_ID": "nobody", "CHAINETTE_REDIS_URL": database.url}
    worker = project.start("worker", "--engine", "writer", "--engine", "judge", env=project.environment | keyless)
    try:
        ran = project.chainette("enqueue", "chain.py", "s3://bucket/a.jsonl", "-o", "out", CHAINETTE_REDIS_URL=database.url)
    finally:
        worker.terminate()
        worker.communicate()
    assert ran.returncode == 0, ran.stderr
    assert len(project.ids("out", "extract")) == 30 and holds_no_secret(tmp_path)


ROWS = [{"row_id": str(at), "text": f"a{at}"} for at in range(50)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return CHAIN.run([Text(text=row["text"]) for row in ROWS], tmp_path_factory.mktemp("far") / "run")


def exported(store: ObjectStore, place: str, to: str) -> list[dict[str, str]]:
    files = [store.folder / place / name for name in store.names(place)]
    match to:
        case "parquet":
            return [row for file in files for row in pq.read_table(file).to_pylist()]
        case "csv":
            return [row for file in files for row in DictReader(file.read_text().splitlines())]
        case _:
            return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("to", ["parquet", "csv", "jsonl"])
def test_an_export_is_whole_in_its_folder_and_never_overwrites(
    tmp_path: Path, store: ObjectStore, finished: RunResult, to: ExportFormat
) -> None:
    addresses = finished.upload("s3://bucket/out/", to, "same", ordered=True, rows_per_file=20)
    assert addresses == [f"s3://bucket/out/train-{at:05}-of-00003.{to}" for at in range(3)]
    assert store.names("bucket/out") == [address.rpartition("/")[2] for address in addresses]
    assert [{key: row[key] for key in ("row_id", "text")} for row in exported(store, "bucket/out", to)] == ROWS
    before = {name: (store.folder / "bucket/out" / name).read_bytes() for name in store.names("bucket/out")}
    with pytest.raises(RunError, match=r"s3://bucket/out exists and is not empty; name a new folder"):
        finished.upload("s3://bucket/out", "jsonl", "same")
    assert {name: (store.folder / "bucket/out" / name).read_bytes() for name in store.names("bucket/out")} == before
    with pytest.raises(RunError, match=r"s3://none/out: cannot be written: .*bucket does not exist"):
        finished.upload("s3://none/out", "jsonl", "same")
    assert not (store.folder / "none").exists()
    with pytest.raises(RunDirectoryError, match=r"s3://bucket/new is not a folder on this machine; result.upload"):
        finished.export("s3://bucket/new")


def changing(line: str) -> bool:
    return line.startswith(("PUT", "DELETE"))


@pytest.mark.parametrize("last", some(range(9), 3, 1))
def test_an_export_that_breaks_off_is_no_data_set_and_the_same_call_makes_it_whole(
    tmp_path: Path, store: ObjectStore, finished: RunResult, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """It breaks off at each of its changes: of two files, and the list of them, sent, copied and deleted."""
    passed = iter(range(last))
    fault: Fault = lambda number, line: "forbid" if changing(line) and next(passed, None) is None else ""  # noqa: E731
    export = partial(finished.upload, "s3://bucket/out", "jsonl", "same", ordered=True, rows_per_file=25)
    names = [f"train-{at:05}-of-00002.jsonl" for at in range(2)]
    with store.link(fault) as link, monkeypatch.context() as broken:
        broken.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        if last < 8:
            with pytest.raises(RunError, match=r"s3://bucket/out: cannot be written: .*; check the credentials"):
                export()
    found = store.names("bucket/out")
    assert ("_unfinished/all_sent.json" in found) if set(found) & set(names) else True
    if any(name in found for name in names):
        with pytest.raises(RunError, match=r"s3://bucket/out holds another export that was interrupted"):
            finished.upload("s3://bucket/out", "csv", "same")
    export()
    assert store.names("bucket/out") == names
    assert [{key: row[key] for key in ("row_id", "text")} for row in exported(store, "bucket/out", "jsonl")] == ROWS


def test_a_killed_export_goes_on_with_the_same_command(tmp_path: Path, store: ObjectStore, finished: RunResult) -> None:
    project = Project(tmp_path)
    words = ("export", str(finished.dir), "same", "--to", "csv", "--sorted", "--rows-per-file", "20")
    reached, go_on = threading.Event(), threading.Event()

    def wait(number: int, line: str) -> str:
        if line.startswith("PUT") and len([asked for asked in link.asked if asked.startswith("PUT")]) == 3:
            reached.set()
            go_on.wait()
        return ""

    with store.link(wait) as link:
        process = project.start(*words, "-o", "s3://bucket/out", env=project.environment | link.environment)
        assert reached.wait(LONG)
        process.kill()
        process.communicate()
        go_on.set()
    assert all(name.startswith("_unfinished/") for name in store.names("bucket/out"))
    again = project.chainette(*words, "-o", "s3://bucket/out")
    assert (again.returncode, again.stdout) == (0, "3 files in s3://bucket/out\n"), again.stderr
    assert len(store.names("bucket/out")) == 3
    assert [{key: row[key] for key in ("row_id", "text")} for row in exported(store, "bucket/out", "csv")] == ROWS


def test_an_object_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.put("bucket/a.jsonl", lines("old"))
    fresh = iter([lines("new")])

    def change(number: int, line: str) -> str:
        if line.startswith("GET /bucket/a"):
            store.put("bucket/a.jsonl", next(fresh))
        return ""

    with store.link(change) as link, monkeypatch.context() as changing:
        changing.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        with pytest.raises(InputError, match=r"s3://bucket/a\.jsonl: (changed while it was copied|cannot be read)"):
            CHAIN.run(url, tmp_path / "out")
    CHAIN.run(url, tmp_path / "out")
    assert texts(tmp_path / "out") == ["new"]
