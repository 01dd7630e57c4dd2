"""Append-only Merkle ledgers and their offline verification."""
