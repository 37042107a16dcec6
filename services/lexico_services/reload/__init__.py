"""The way out: frames and dictionary sets from the store to nodes."""
