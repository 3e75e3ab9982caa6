"""Random weights: tiny ones for the mock, full-size ones for benchmarks."""
