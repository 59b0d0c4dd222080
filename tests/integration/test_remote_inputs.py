"""Inputs at a URL: copied once into the run directory, and read from there."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from chainette import Chain, apply
from chainette.errors import InputError
from tests.support.chains import Text
from tests.support.cli import Project


def same(item: Text) -> Text:
    return item


CHAIN = Chain(name="remote", steps=[apply(same)])


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of the server that hands out its files."""
    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def texts(chain_input: str | list[str], out: Path) -> list[str]:
    result = CHAIN.run(chain_input, out)
    return [row["text"] for row in sorted(result.rows("same"), key=lambda row: int(row["row_id"]))]


def test_folders_and_patterns_are_read_in_the_order_of_their_numbers(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({f"/bucket/{at}.jsonl": lines(f"t{at}") for at in (10, 9, 1)} | {"/bucket/notes.txt": b"no input"})
    assert texts("memory://bucket", tmp_path / "folder") == ["t1", "t9", "t10"]
    assert texts("memory://bucket/1*.jsonl", tmp_path / "pattern") == ["t1", "t10"]
    assert texts(["memory://bucket/9.jsonl", "memory://bucket/1.jsonl"], tmp_path / "two") == ["t9", "t1"]


def test_a_remote_and_a_local_file_are_one_input(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/a.jsonl", lines("far"))
    (tmp_path / "b.jsonl").write_bytes(lines("near"))
    assert texts([str(tmp_path / "b.jsonl"), "memory://bucket/a.jsonl"], tmp_path / "run") == ["near", "far"]


def test_a_compressed_file_of_a_web_server_is_read_and_its_query_is_kept_secret(tmp_path: Path, web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines("a", "b")))
    assert texts(f"{address}/rows.jsonl.gz?signature=s3cret", tmp_path / "run") == ["a", "b"]
    assert not [file for file in (tmp_path / "run").rglob("*") if "s3cret" in file.name]
    assert b"s3cret" not in (tmp_path / "run/events.jsonl").read_bytes()


def test_a_stopped_run_is_resumed_without_the_server(tmp_path: Path, web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "rows.jsonl").write_bytes(lines(*"abcdef"))
    project = Project(tmp_path)
    first = project.chainette("run", "chain.py", f"{address}/rows.jsonl", "--limit", "2", "--simulate", "-o", "out")
    assert first.returncode == 0, first.stderr
    (folder / "rows.jsonl").unlink()
    more = project.chainette("resume", "out", "--limit", "5")
    assert more.returncode == 0, more.stderr
    assert project.ids("out", "extract") == [str(at) for at in range(5)]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://bucket/none.jsonl", "memory://bucket/none.jsonl: cannot be read"),
        ("memory://bucket/*.parquet", "no file matches this pattern"),
        *(
            (f"https://user:se{sign}cret@host/rows.jsonl", "(a hidden URL): cannot be read: write / ? # in a password as %2F")
            for sign in "/?#"
        ),
        ("nope://user:secret@host/rows.jsonl", "nope://host/rows.jsonl: cannot be read: Protocol not known: nope"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line_without_secrets(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, url: str, words: str
) -> None:
    memory.pipe("/bucket/a.jsonl", lines("a"))
    with pytest.raises(InputError) as caught:
        CHAIN.run(url, tmp_path / "run")
    assert words in str(caught.value) and not re.search("secret|cret@|:se", str(caught.value))


class _Faulty(SimpleHTTPRequestHandler):
    """Answers with the status that a path names, and gives half of the file of any other."""

    def do_GET(self) -> None:
        if (word := self.path.partition("?")[0][1:]).isdecimal():
            self.send_error(int(word))
            return
        self.send_response(200)
        self.send_header("Content-Length", "2000")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(lines("a") * 50)

    do_HEAD = do_GET


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("404", "no such file"),
        ("403", "403 Forbidden"),
        ("503", "503 Service Unavailable"),
        ("half.jsonl", "Response payload is not completed"),
    ],
)
def test_an_answer_of_a_web_server_is_told_as_it_is_and_the_disk_is_not_blamed(tmp_path: Path, path: str, words: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Faulty) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{path}"
        with pytest.raises(InputError) as caught:
            CHAIN.run(f"{address}?signature=s3cret", tmp_path / "run")
        server.shutdown()
    assert str(caught.value).startswith(f"{address}: cannot be read: {words}") and "s3cret" not in str(caught.value)
