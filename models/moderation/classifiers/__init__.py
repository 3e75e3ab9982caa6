"""Classifiers of other people, through transformers. Beside `models/mochi`, all that needs torch.

They are no part of Mochi, hence a package of their own.
"""
