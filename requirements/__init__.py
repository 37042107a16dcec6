"""Exact versions of what the targets install: `make lock` resolves the ranges of pyproject.toml."""
