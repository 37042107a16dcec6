"""Ray workers that encode pages and commit them to the store."""
