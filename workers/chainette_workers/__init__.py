"""The fleet's processes: coordinator, engine workers and sink. They share Redis and nothing else."""
