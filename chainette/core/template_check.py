"""."""
def template_problems(*a): return []
