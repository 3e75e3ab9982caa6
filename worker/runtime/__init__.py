"""The worker process: takes jobs, runs the engine, beats, reconciles, sweeps."""
