"""."""
def fingerprint_code(fn): return ""
def fingerprint_model(fn): return ""
