"""HTTP routes, one module per resource; `key` has those of an API key."""
