"""Members as pods: one StatefulSet per group, Patroni on the Kubernetes store.

* :mod:`.names`: what everything is called, and how it is labelled
* :mod:`.cluster_objects`, :mod:`.group_objects`, :mod:`.pods`, :mod:`.patroni_files`: what a cluster consists of, as
  pure functions from the declaration to plain data
* :mod:`.api`, :mod:`.cache`: the Kubernetes API, asked directly, or watched
* :mod:`.views`: from pods and volumes to members
* :mod:`.platform`: all of it behind :class:`pgherd.platform.base.Platform`
"""
