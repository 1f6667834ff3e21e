"""What differs between both sides, and why."""
