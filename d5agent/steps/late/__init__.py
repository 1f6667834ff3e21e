"""Report and apply late operations."""
