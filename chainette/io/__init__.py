"""What touches the disk: inputs, the event log, shards, and the run directory."""
