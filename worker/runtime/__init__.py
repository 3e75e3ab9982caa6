"""The worker process: takes jobs, runs the engine, reconciles dead runs, sweeps old files."""
