"""The user's declarations, and the plan that they compile to."""
