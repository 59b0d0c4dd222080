"""Tools that several tests share: chains that use every feature, and crashes on demand."""
