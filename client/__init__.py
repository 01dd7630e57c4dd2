"""The institution's node: data, training, gate."""
