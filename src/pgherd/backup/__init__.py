"""Backups of the whole cluster.

A backup of one database is a base copy and the log since. A cluster of many databases needs one thing more: places in
their logs that fit together. So there are three kinds of things in a repository:

* *base copies* of single groups, made together as a *backup*, each usable by itself (``native``);
* the groups' *logs*, archived file by file as they fill (``archive``);
* *restore points*: names written into all groups' logs at a moment when no distributed transaction is half committed
  (``points``). A cluster is only ever restored to such a point; a time, or a backup's end, means one of them.

For a restore point each group is rebuilt from its own newest base copy before the point (``choice``, ``restore``).
"""
