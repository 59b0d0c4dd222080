"""The queue in plain Python, for one process and for tests."""
