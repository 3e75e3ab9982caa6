"""Every Redis key and script: job records, queue, presence, deliveries, usage."""
