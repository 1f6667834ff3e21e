"""What to write into the target, and what the target will make of it."""
