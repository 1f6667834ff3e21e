"""From the log into the target."""
