"""Third-party classifiers, through transformers."""
