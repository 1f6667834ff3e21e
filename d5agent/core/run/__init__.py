"""The phases of a failback and the state that is kept of them."""
