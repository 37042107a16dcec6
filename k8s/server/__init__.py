"""Every object by server-side dry run against real API servers: `make k8s-server-check`."""
