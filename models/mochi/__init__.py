"""Mochi 1 itself: the only package that imports torch, diffusers and transformers."""
