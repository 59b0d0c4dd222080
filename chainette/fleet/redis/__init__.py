"""The queue on Redis, and a fleet as Redis shows it."""
