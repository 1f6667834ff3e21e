"""The services, one file each; they know ports, steps and core, never an adapter, never each other."""
