"""The coordinator and the sink as services for many runs."""
