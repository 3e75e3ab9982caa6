"""Every Redis key and script: job records, queue, presence, webhooks, reports."""
