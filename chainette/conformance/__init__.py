"""The conformance suite: cases that every backend must pass."""
