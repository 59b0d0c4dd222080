"""Answers drawn from the schema."""
