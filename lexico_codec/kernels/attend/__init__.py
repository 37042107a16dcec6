"""Attention over sparse codes that are never made dense."""
