"""Wire messages and their codecs."""
