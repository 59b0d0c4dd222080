"""Reads inputs: from files to validated rows."""
