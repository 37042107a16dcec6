"""What the processes of the service tell of themselves: metrics over HTTP, and traces."""
