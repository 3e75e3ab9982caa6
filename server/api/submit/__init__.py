"""Submits: what a client asks for, whether it would be accepted, and the answer."""
