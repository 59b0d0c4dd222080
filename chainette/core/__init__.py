"""The user's declarations, and the plan they compile to."""
