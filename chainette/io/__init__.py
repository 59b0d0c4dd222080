"""Disk access: inputs, the event log, shards, and the run directory."""
