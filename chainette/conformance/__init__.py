"""The cases every backend is held to."""
