"""What outlives the records of requests: history, usage and statistics."""
