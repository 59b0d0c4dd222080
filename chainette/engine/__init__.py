"""Who answers: declarations, the registry, and the backends."""
