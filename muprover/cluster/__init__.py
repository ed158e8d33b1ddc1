"""A release on Kubernetes, seen and changed from a laptop; needs nothing but a kubeconfig."""
