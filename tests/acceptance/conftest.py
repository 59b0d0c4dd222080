"""Fixtures of the tests that need a real Valkey."""

from tests.support.valkey import database, proxy, shared_server

__all__ = ["database", "proxy", "shared_server"]
