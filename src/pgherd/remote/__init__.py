"""Clusters on Kubernetes, seen from outside: what the commands call, with nothing but a kubeconfig's rights.

Wishes are written into the custom resource, looks are taken at its status. Whatever has to talk to a database or to
a Patroni goes through the Kubernetes API to the pod itself, so a laptop needs no route into the cluster's network.
"""
