"""The whole failback on embedded servers; only the command line imports it."""
