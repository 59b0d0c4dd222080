"""The user's code: found, imported in isolation, fingerprinted."""
