"""Finds the user's code, imports it in isolation, and fingerprints it."""
