"""Two inference nodes share a prompt cache: `python -m examples.two_nodes`, or `make demo`."""
