"""Secure aggregation: keys, masks, shares, protocol."""
