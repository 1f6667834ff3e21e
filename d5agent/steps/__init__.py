"""What several services do: write and read the log, replay, compare. They know ports and core only."""
