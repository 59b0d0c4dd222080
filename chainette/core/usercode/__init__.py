"""The user's code: found, imported in isolation, told apart."""
