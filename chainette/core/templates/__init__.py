"""Checks names in prompts against the models that they stand for."""
