"""From frames to files: the encoder of videos, and stills."""
