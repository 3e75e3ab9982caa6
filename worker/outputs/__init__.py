"""Stores for finished videos and checkpoints: a folder or S3."""
