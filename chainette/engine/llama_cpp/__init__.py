"""A GGUF file in this process."""
