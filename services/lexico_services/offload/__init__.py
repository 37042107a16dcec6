"""The way in: pages from nodes to encoders."""
