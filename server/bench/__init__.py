"""Measures the product. Nothing here is part of serving."""
