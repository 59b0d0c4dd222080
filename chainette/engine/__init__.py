"""Engines: declarations, the registry, and the backends."""
