"""What a fleet of nodes gets of one store: `python -m bench.fleet.NAME`."""
