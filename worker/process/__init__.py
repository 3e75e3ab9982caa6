"""Shared by gateway and worker processes: logs, shutdown, parent watch, systemd, traces."""
