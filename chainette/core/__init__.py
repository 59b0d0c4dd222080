"""What the user declares, and the plan that it compiles to."""
