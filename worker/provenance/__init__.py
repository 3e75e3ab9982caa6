"""Marks videos as made by AI: IPTC's term in the metadata, and a C2PA manifest that is signed.

`marker.py` decides what a worker does. `identity.py`, `signing.py` and `verification.py` need the
extra `provenance`, which the others do not load.
"""
