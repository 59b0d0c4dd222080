"""Chains declared in YAML: read, turned into the same objects as Python makes, and written."""
