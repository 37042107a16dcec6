"""What a fleet of nodes gets of one store: `python -m bench.fleet`, a part by its name."""
