"""Model weights on disk: pulling, verifying and locating them."""
