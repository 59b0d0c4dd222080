"""The cases that every backend is held to."""
