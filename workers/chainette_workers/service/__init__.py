"""Coordinator and sink as services for many runs."""
