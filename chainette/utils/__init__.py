"""Small modules that know nothing of chains: ids, banner, debugging."""
