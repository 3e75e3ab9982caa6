"""From weights on disk to a ready engine."""
