"""Progress and numbers for people, for the command line and for Python."""
