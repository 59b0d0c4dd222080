"""Checks the names in prompts against the models of their values."""
