"""The Helm chart, made of what kustomize renders: `python -m k8s.chart`."""
