"""Connections to the broker: Redis or Valkey, external or embedded."""
