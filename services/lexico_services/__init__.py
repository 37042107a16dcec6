"""gRPC services: offload (ingress, inside Ray), reload and dictionaries (no Ray)."""
