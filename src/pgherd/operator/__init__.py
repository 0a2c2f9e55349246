"""The operator: watches PostgresCluster resources and runs a reconcile loop for each.

kopf sees to the resources (which there are, that none goes before its finalizer is done); the loop is the same as on
one machine. The operator may be killed at any time and stay away: databases go on and fail over by themselves.
"""
