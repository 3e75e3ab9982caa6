"""What every process of ours needs: logs, shutdown, parent watch, traces."""
