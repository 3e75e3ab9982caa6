"""GPU and host memory: profiles, streaming, pinned copies."""
