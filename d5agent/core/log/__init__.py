"""The log in bytes and hashes: operations, segments, commits, packs."""
