"""What a restore would do, and how long it would take."""
