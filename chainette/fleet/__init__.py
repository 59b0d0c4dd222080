"""Shared by the command line and the workers: Redis keys, run state, the queue and its transitions, and the
Valkey server a machine without one starts for itself."""
