"""A cache's memory as rows to transform, and back."""
