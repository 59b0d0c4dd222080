"""Rows as columns: Arrow, Parquet and CSV."""
