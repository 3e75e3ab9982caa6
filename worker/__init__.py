"""The job system: records, queue, outputs, the worker that runs them. Knows no HTTP."""
