"""Artefacts that ship: planned, written, run in their own runtime, and passed or not passed."""
