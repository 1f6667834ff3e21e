"""Write and read the log in the store."""
