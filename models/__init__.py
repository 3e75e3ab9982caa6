"""Mochi 1: its parameters, engines, and the encoder to MP4. Knows no jobs and no HTTP."""

VERSION = "0.1.0"
"""Of the project; the build reads it here. A checkout that is not installed has it, too."""
