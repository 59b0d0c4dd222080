"""Fixtures of the tests that need a real Valkey."""

from tests.support.valkey import database, proxy, server, shared_server

__all__ = ["database", "proxy", "server", "shared_server"]
