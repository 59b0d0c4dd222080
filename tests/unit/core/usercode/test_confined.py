"""Chains from Redis: nothing is executed unless it is below the root and has the digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chainette.core.usercode.confined import (
    ChainClaim,
    ClaimRefused,
    confined_file,
    digest_of,
    engine_file,
    require_recorded,
)
from chainette.core.usercode.loading import load_chain
from chainette.errors import LoadError

CHAIN = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
from chainette import Chain, apply
from pydantic import BaseModel
import helper

class Item(BaseModel):
    text: str

@apply
def work(item: Item) -> Item:
    return item

chain = Chain(name="x", steps=[work])
"""

NOTHING = ChainClaim("00")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A chain root, with a chain of the same name outside of it."""
    for name in ("root", "outside"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "chain.py").write_text(CHAIN)
        (folder / "helper.py").write_text("")
    return tmp_path / "root"


def executed(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root.parent)) for path in root.parent.rglob("executed"))


def claim_of(root: Path, **changes: object) -> ChainClaim:
    """The chain, as described by the process that enqueued it."""
    loaded = load_chain("chain.py", root)
    (root / "executed").unlink()
    return ChainClaim(**{"digest": loaded.digest, "files": loaded.names} | changes)  # type: ignore[arg-type]


def fifo(path: Path) -> None:
    os.mkfifo(path)


OUTSIDE: dict[str, str] = {
    "an absolute path": "{outside}/chain.py",
    "a path that climbs": "../outside/chain.py",
    "a path that climbs from inside": "sub/../../outside/chain.py",
    "a home": "~/chain.py",
    "another user's home": "~root/chain.py",
    "a link to a file": "link.py",
    "a link to a folder": "folder/chain.py",
    "a loop of links": "loop.py",
    "a module": "chain",
    "a module of the library": "antigravity",
    "a package": "os.path",
    "a pipe": "pipe.py",
    "a folder": "sub.py",
    "a device": "/dev/zero",
    "a long name": "a" * 5000 + ".py",
    "a long path": "a/" * 5000 + "x.py",
    "a null byte": "chain.py\0",
    "half a character": "\ud800.py",
    "a line break": "chain\n.py",
    "nothing": "",
    "the root": ".",
    "a slash": "/",
    "only a name": ":chain",
    "a hidden engine": "sub/",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_reference_that_leads_out_of_the_root_executes_nothing(root: Path, name: str) -> None:
    outside = root.parent / "outside"
    (root / "sub.py").mkdir()
    (root / "sub").mkdir()
    (root / "link.py").symlink_to(outside / "chain.py")
    (root / "folder").symlink_to(outside)
    (root / "loop.py").symlink_to(root / "loop.py")
    fifo(root / "pipe.py")
    reference = OUTSIDE[name].format(outside=outside)
    with pytest.raises(LoadError) as caught:
        load_chain(reference, root, claim=NOTHING)
    assert executed(root) == [] and len(str(caught.value)) < 400


def test_a_file_below_the_root_is_executed_only_with_the_digest_that_was_enqueued(root: Path) -> None:
    claim = claim_of(root)
    with pytest.raises(ClaimRefused, match=r"has digest \w{12} here, but 00 where"):
        load_chain("chain.py", root, claim=ChainClaim("00", claim.files))
    assert executed(root) == []
    for reference in ("chain.py", str(root / "chain.py"), "./chain.py:chain"):
        assert load_chain(reference, root, claim=claim).digest == claim.digest
    assert executed(root) == ["root/executed"]


def test_a_changed_helper_is_noticed_before_anything_is_executed(root: Path) -> None:
    claim = claim_of(root)
    (root / "helper.py").write_text("raise SystemExit")
    with pytest.raises(ClaimRefused):
        load_chain("chain.py", root, claim=claim)
    assert executed(root) == []


def test_a_helper_that_the_claim_leaves_out_is_not_executed(root: Path) -> None:
    (root / "helper.py").write_text("from pathlib import Path; Path(__file__).with_name('helped').touch()")
    claim_of(root)
    (root / "helped").unlink()
    alone = digest_of({"chain.py": hashlib.sha256((root / "chain.py").read_bytes()).hexdigest()})
    with pytest.raises(LoadError, match="not among the files that were enqueued"):
        load_chain("chain.py", root, claim=ChainClaim(alone, ("chain.py",)))
    assert not (root / "helped").exists()


def test_a_chain_of_one_file_needs_no_list(root: Path) -> None:
    (root / "chain.py").write_text(CHAIN.replace("import helper", ""))
    (root / "engines.yml").write_text("engines: []\n")
    assert load_chain("chain.py", root, claim=claim_of(root, files=())).chain.name == "x"


@pytest.mark.parametrize("files", [("../outside/chain.py",), (".env",), ("a" * 5000,), ("chain.py",) * 20_000, ("pipe.py",)])
def test_a_list_names_files_of_a_chain_only(root: Path, files: tuple[str, ...]) -> None:
    (root / ".env").write_text("SECRET=1")
    fifo(root / "pipe.py")
    with pytest.raises(LoadError):
        load_chain("chain.py", root, claim=ChainClaim("00", files))
    assert executed(root) == []


@pytest.mark.parametrize("allowed", ["pkg", "pkg.chains"])
def test_a_module_is_loaded_if_the_process_was_told_so(tmp_path: Path, allowed: str) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "pkg/chains.py").write_text(CHAIN.replace("import helper", ""))
    loaded = load_chain("pkg.chains", tmp_path)
    (tmp_path / "pkg/executed").unlink()
    for modules in ((), ("pk",), ("pkg.other",)):
        with pytest.raises(LoadError, match="--chain-module"):
            load_chain("pkg.chains", tmp_path, claim=ChainClaim(loaded.digest, loaded.names, modules))
    assert not (tmp_path / "pkg/executed").exists()
    for files in (loaded.names, ()):
        claim = ChainClaim(loaded.digest, files, (allowed,))
        assert load_chain("pkg.chains:chain", tmp_path, claim=claim).digest == loaded.digest


# -- other files


Spoil = Callable[[Path], object]

ENGINES: dict[str, tuple[str, Spoil]] = {
    "outside": ("../outside/engines.yml", lambda root: (root.parent / "outside/engines.yml").touch()),
    "a link": ("link.yml", lambda root: (root / "link.yml").symlink_to("/etc/passwd")),
    "a pipe": ("pipe.yml", lambda root: fifo(root / "pipe.yml")),
    "a device": ("zero.yml", lambda root: (root / "zero.yml").symlink_to("/dev/zero")),
    "large": ("large.yml", lambda root: (root / "large.yml").write_bytes(b"#" * (2 << 20))),
    "no YAML": (".env", lambda root: (root / ".env").write_text("SECRET=1")),
    "nowhere": ("none.yml", lambda root: None),
    "absolute": ("/etc/hosts.yml", lambda root: None),
}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_file_is_a_small_yaml_file_below_the_root(root: Path, name: str) -> None:
    reference, spoil = ENGINES[name]
    spoil(root)
    with pytest.raises(LoadError, match="engine file"):
        engine_file(root, reference)
    (root / "engines.yml").touch()
    assert engine_file(root, "engines.yml") == root / "engines.yml"


def test_a_log_names_a_chain_below_its_root(root: Path) -> None:
    require_recorded("chain.py:chain", None, root)
    require_recorded("pkg.chains:chain", "/etc/engines.yml", root)
    (root / "link.py").symlink_to(root.parent / "outside/chain.py")
    for reference, engines in (("../outside/chain.py", None), ("link.py:x", None), ("~/x.py", None), ("chain.py", "../e.yml")):
        with pytest.raises(LoadError):
            require_recorded(reference, engines, root)


def test_a_link_that_stays_below_the_root_is_followed(root: Path) -> None:
    (root / "link.py").symlink_to(root / "chain.py")
    assert confined_file(root, "link.py", "the chain") == root / "chain.py"
