"""Webhooks in the broker: standing webhooks, and the deliveries of all."""
