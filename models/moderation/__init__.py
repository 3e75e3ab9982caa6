"""Moderation of prompts and frames, off by default. Knows no jobs and no HTTP.

The prompt is judged before the engine works, and frames on their way to the encoder. Only the
package `classifiers` imports torch.
"""
