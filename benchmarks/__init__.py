"""Measurements, each against a named peer and a named limit; see benchmarks/README.md."""
