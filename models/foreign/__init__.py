"""Causal language models of other transformers classes, trained through adapters."""
