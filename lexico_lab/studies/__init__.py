"""Measurements of quality whose results are committed: what the project claims of its codecs.

They run in a checkout, on data that does not ship, and write `bench/results/`.
"""
