"""Checks names in prompts against the models they stand for."""
