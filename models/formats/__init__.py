"""Hugging Face folders: families, names of tensors, files; read and written safely."""
