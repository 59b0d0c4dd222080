"""The run directory: its log, its shards, and the files derived from both."""
