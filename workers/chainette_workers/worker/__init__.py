"""The engine worker: claim, process, commit."""
