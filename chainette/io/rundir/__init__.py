"""The run directory: its log, its shards, and the files that follow from both."""
