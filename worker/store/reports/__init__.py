"""What is told of requests: history, usage and statistics, which outlive records, and forecasts."""
