"""Backends that ask a server, and their shared transport."""
