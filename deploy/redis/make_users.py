#!/usr/bin/env python3
"""Generates passwords for the roles of a fleet: users.acl for the server, and per role an env file with CHAINETTE_REDIS_URL.
fleet.env holds CHAINETTE_FLEET_KEY, with which all processes of the fleet seal their messages.

    python3 deploy/redis/make_users.py [--url redis://redis:6379/0] [--into deploy/secrets]

Existing files stay unchanged, so that a second call changes no password and no key. The server gets only hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
from pathlib import Path

ROLES = ("coordinator", "sink", "worker", "operator")
RULES = Path(__file__).with_name("users.acl")


def main() -> None:
    parser = argparse.ArgumentParser(description="Passwords for the roles of a fleet.")
    parser.add_argument("--url", default="redis://redis:6379/0", help="where the roles reach the server; rediss:// for TLS")
    parser.add_argument("--into", type=Path, default=Path("deploy/secrets"))
    options = parser.parse_args()
    options.into.mkdir(mode=0o700, parents=True, exist_ok=True)
    digests = {role: _digest(options.into / f"{role}.env", role, options.url) for role in ROLES}
    _write_once(options.into / "fleet.env", f"CHAINETTE_FLEET_KEY={secrets.token_urlsafe(32)}\n")
    users = RULES.read_text()
    for role, digest in digests.items():
        users = users.replace(f"#{role}", f"#{digest}")
    # readable by the server's user, which is not one of ours; it only holds hashes of long random passwords
    (options.into / "users.acl").write_text(users)
    print(f"{options.into}: users.acl, {', '.join(f'{name}.env' for name in (*ROLES, 'fleet'))}")


def _digest(file: Path, role: str, url: str) -> str:
    """SHA-256 of the role's password; creates its env file if there is none."""
    scheme, _, address = url.partition("://")
    _write_once(file, f"CHAINETTE_REDIS_URL={scheme}://{role}:{secrets.token_urlsafe(32)}@{address}\n")
    password = file.read_text().split("://", 1)[1].split("@", 1)[0].partition(":")[2]
    return hashlib.sha256(password.encode()).hexdigest()


def _write_once(file: Path, line: str) -> None:
    """Creates a file that only its owner reads; leaves one that is there."""
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(line)


if __name__ == "__main__":
    main()
