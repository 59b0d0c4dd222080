"""Backends that ask a server, and the transport that they share."""
