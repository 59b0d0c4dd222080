"""The command line: one small file per command, and the only place of the package that prints."""
