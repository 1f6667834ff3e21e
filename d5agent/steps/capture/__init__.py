"""From the change stream into the log, and the proof that it is complete."""
