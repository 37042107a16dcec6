"""What runs the service on Kubernetes, its checks, and the Helm chart that is made of it."""
