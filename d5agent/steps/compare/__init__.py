"""Compare both sides, and repair."""
