"""What several services do: write and read the log, replay, compare, fence."""
