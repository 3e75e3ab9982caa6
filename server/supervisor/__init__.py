"""Processes that run others: `up`, and `worker` on several cards."""
