"""Webhook sending, guarded against SSRF."""
