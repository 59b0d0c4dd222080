"""The sink and the coordinator of one run."""
