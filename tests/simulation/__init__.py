"""The real coordinator, workers, sink, writer and readers under a virtual clock and a seeded schedule of faults.

`python -m tests.simulation` (`make simulate`) runs seeds; `scenario.py` draws a scenario from a seed.
"""
