"""The routes, one module for each kind of caller's wish."""
