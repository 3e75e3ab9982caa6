"""Stand-ins for a GPU and for real weights."""
