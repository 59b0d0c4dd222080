"""A run: started or resumed, its units scheduled, each unit processed."""
