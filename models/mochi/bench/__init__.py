"""Benchmark of the engine: `mochi-server bench engine`."""
