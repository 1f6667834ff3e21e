"""Dry run: what a restore would do."""
