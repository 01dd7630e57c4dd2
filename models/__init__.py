"""The sparse decoder, its tokenizer and its files."""
