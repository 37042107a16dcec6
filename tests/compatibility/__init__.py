"""What the tests say about versions other than the locked ones: `make compatibility`."""
