"""Fixtures of the tests that need a real Valkey."""

from tests.support.valkey import database, shared_server

__all__ = ["database", "shared_server"]
