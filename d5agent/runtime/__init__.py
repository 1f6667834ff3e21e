"""The daemon: wiring, supervision, control socket, stopping."""
