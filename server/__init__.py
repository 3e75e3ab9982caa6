"""HTTP and the command line. Translates, and decides nothing about jobs. Runs without torch."""
