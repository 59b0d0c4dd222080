"""Fixtures of the tests that need a real Valkey."""

from tests.support.valkey import database, proxy, redis_database, redis_server, server, shared_server

__all__ = ["database", "proxy", "redis_database", "redis_server", "server", "shared_server"]
