"""What belongs to an API key: its account, its history and its standing webhooks."""
