"""Mochi 1: its parameters, engines, and the encoder to MP4. Knows no jobs and no HTTP."""
