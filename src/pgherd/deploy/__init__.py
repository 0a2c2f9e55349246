"""Bringing the operator to a Kubernetes cluster: its objects as pure data, and what applies, awaits and removes them.

One source for every road: ``pgherd install``, its ``--dry-run`` piped into kubectl, and the Helm chart.
"""
