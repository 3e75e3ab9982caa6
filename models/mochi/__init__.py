"""Mochi 1 itself. Beside the classifiers of moderation, all that imports torch and diffusers."""
