"""A wire-protocol proxy that makes a real mongod behave as Amazon DocumentDB is documented to."""

from d5agent.drill.gateway.server import Gateway

__all__ = ["Gateway"]
