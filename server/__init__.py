"""The gateway (HTTP API, page, webhooks) and the command line. Runs without torch."""
