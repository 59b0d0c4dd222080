"""The transitions of the queue, one Lua script each."""
