"""Small things without an owner: ids, banner, debugging."""
