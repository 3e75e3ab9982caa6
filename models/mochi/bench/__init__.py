"""Measurements of the engine: `mochi-server bench engine`."""
