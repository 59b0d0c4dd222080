"""The vocabulary of the fleet: the queue's contract, messages, states and keys."""
