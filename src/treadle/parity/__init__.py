"""Parity: every family against transformers, by command; what is compared stands in matrix.toml."""
