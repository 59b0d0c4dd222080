"""A run as one HTML page for people."""
