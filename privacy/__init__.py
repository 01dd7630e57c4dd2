"""Private training, secure aggregation, identities, budgets."""
