"""An embedded Valkey that does not outlive its owner."""
