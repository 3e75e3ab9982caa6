"""HTTP and the command line. Translates, and decides nothing about jobs. Runs without torch."""

from importlib.metadata import version

VERSION = version("mochi-server")
