"""A Hugging Face Hub at HTTP level, small and local: the endpoints that `datasets` and `huggingface_hub` ask for data sets.

Source of the protocol: https://huggingface.co/docs/hub/api, and git-lfs' batch API for large files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets  # noqa: F401 - patched by name
import pytest
import yaml
from huggingface_hub import HfFileSystem

__all__ = ["Hub", "hub_at"]

#: The paths of data sets' files, of their API, and of their large files.
_FILE = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>revision|tree|paths-info|preupload|commit)/(?P<rest>.+))?")
_BATCH = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Hub:
    """Data sets as files by commit."""

    def __init__(self) -> None:
        #: Data set -> commit -> path -> content; the last commit is the branch `main`.
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        #: Large files by their sha256, also of commits that never came.
        self.blobs: dict[str, bytes] = {}
        #: (method, path) of every request.
        self.asked: list[tuple[str, str]] = []
        #: The number of large files that are taken before one is refused; None: all are.
        self.takes: int | None = None
        self.url = ""
        self._lock = Lock()

    def put(self, repo: str, files: dict[str, bytes], gone: Collection[str] = ()) -> str:
        """A new commit that adds and deletes these files; returns it."""
        with self._lock:
            commits = self.repos.setdefault(repo, {})
            old = commits[list(commits)[-1]] if commits else {}
            whole = {path: content for path, content in old.items() if path not in gone} | files
            commit = hashlib.sha1(repr(sorted(whole.items())).encode()).hexdigest()
            commits.pop(commit, None)
            commits[commit] = whole
            return commit

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[repo][self.commit(repo, revision)]

    def commit(self, repo: str, revision: str) -> str:
        commits = self.repos[repo]
        if revision == "main":
            return list(commits)[-1]
        [found] = [commit for commit in commits if commit == revision]
        return found

    def took(self, method: str, part: str) -> int:
        """The number of requests whose path has that part."""
        return sum(verb == method and part in path for verb, path in self.asked)


@contextmanager
def hub_at(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A hub this process and those that it starts ask in place of the real one, with an empty cache in `folder`.

    The libraries read the address when they are imported, so it is set in those that are.
    """
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_s3cret",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for module, values in _constants(hub.url, folder).items():
            for name, value in values.items():
                monkeypatch.setattr(f"{module}.{name}", value)
        HfFileSystem.clear_instance_cache()
        yield hub
        server.shutdown()


def _constants(url: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What the libraries made of the variables when they were imported."""
    return {
        "huggingface_hub.constants": {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        },
        "datasets.config": {
            "HF_ENDPOINT": url,
            "HUB_DATASETS_URL": f"{url}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}",
            "HF_DATASETS_CACHE": folder / "datasets",
            "HF_HUB_OFFLINE": False,
        },
    }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if found := _FILE.fullmatch(path):
            self._file(**found.groupdict())
        elif (found := _API.fullmatch(path)) and found["verb"] in (None, "revision", "tree"):
            self._described(found["repo"], found["verb"], found["rest"])
        else:
            self._refuse(404, "EntryNotFound")

    def _known(self, repo: str, revision: str) -> str | None:
        """The commit; None if it was answered that there is none."""
        if repo not in self.hub.repos or not self.hub.repos[repo]:
            self._refuse(404, "RepoNotFound")
        elif revision != "main" and revision not in self.hub.repos[repo]:
            self._refuse(404, "RevisionNotFound")
        else:
            return self.hub.commit(repo, revision)
        return None

    def _file(self, repo: str, revision: str, path: str) -> None:
        commit = self._known(repo, revision)
        if commit is None:
            return
        content = self.hub.repos[repo][commit].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._answer(status, content, headers)

    def _described(self, repo: str, verb: str | None, rest: str | None) -> None:
        revision, _, folder = (rest or "main").partition("/")
        commit = self._known(repo, revision)
        if commit is None:
            return
        files = self.hub.repos[repo][commit]
        if verb == "tree":
            below = f"{folder}/" if folder else ""
            inside = {path: content for path, content in files.items() if path.startswith(below)}
            folders = {
                path[: len(below)] + path[len(below) :].partition("/")[0] for path in inside if "/" in path[len(below) :]
            }
            deep = "recursive=true" in self.path.lower()
            listed = [_entry(path, content) for path, content in inside.items() if deep or "/" not in path[len(below) :]]
            self._json(listed + [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)])
            return
        self._json(
            {
                "_id": "0",
                "id": repo,
                "sha": commit,
                "private": repo in self.hub.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in files],
            }
        )

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.asked.append(("PUT", self.path))
        with self.hub._lock:
            if self.hub.takes is not None and len(self.hub.blobs) >= self.hub.takes:
                self._refuse(403, "", text="the hub takes no more")
                return
            self.hub.blobs[self.path.rpartition("/")[2]] = body
        self._answer(200, b"")

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.asked.append(("POST", path))
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self._json({"errors": [] if isinstance(head, dict) else [{"message": "no mapping"}], "warnings": []})
        elif found := _BATCH.fullmatch(path):
            self._batch(json.loads(body)["objects"])
        elif (found := _API.fullmatch(path)) and found["verb"] == "paths-info":
            self._paths(found["repo"], found["rest"], body)
        elif found and found["verb"] == "preupload":
            self._json({"files": [_way(file) for file in json.loads(body)["files"]]})
        elif found and found["verb"] == "commit":
            self._commit(found["repo"], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repos:
            self._json({"url": f"{self.hub.url}/datasets/{repo}", "error": "exists"}, 409)
            return
        self.hub.put(repo, {".gitattributes": b""})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self._json({"url": f"{self.hub.url}/datasets/{repo}", "name": repo, "id": repo})

    def _paths(self, repo: str, revision: str, body: bytes) -> None:
        commit = self._known(repo, revision)
        if commit is not None:
            files = self.hub.repos[repo][commit]
            wanted = (
                json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", unquote(body.decode()))
            )
            self._json([_entry(path, files[path]) for path in wanted if path in files])

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        """A large file that is there needs no upload."""
        found = [
            {"oid": each["oid"], "size": each["size"]}
            | ({} if each["oid"] in self.hub.blobs else {"actions": {"upload": {"href": f"{self.hub.url}/blob/{each['oid']}"}}})
            for each in objects
        ]
        self._json({"transfer": "basic", "objects": found}, kind="application/vnd.git-lfs+json")

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        gone = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
        commit = self.hub.put(repo, files, gone)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/datasets/{repo}/commit/{commit}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any, status: int = 200, kind: str = "application/json") -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": kind})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None, text: str = "not found") -> None:
        self._answer(
            status, json.dumps({"error": text}).encode(), {"X-Error-Code": code, "X-Error-Message": text} | (headers or {})
        )

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _way(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(".parquet") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
