"""A real fleet of processes under a seeded schedule of faults: `make chaos SEED=1 FAULTS=100`."""
