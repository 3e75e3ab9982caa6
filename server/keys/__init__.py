"""API keys: records, lookup, files, audit, throttling."""
