"""Attacks by a coverage-guided fuzzer on whatever reads bytes of others: `make fuzz`."""
