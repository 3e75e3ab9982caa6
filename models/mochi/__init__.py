"""Mochi 1: engine, network, loading. Imports torch and diffusers."""
