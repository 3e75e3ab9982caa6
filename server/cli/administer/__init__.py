"""Commands that administer a server: keys, webhooks, weights, workers."""
