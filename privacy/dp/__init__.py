"""Sampling, clipping, noise and their accounting."""
