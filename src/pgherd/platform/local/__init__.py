"""Members as processes on one machine.

A *home* is a directory that holds everything of all its clusters: declarations, data, logs, ports, and Patroni's store
(one ``patroni_raft_controller`` process). Members are processes in sessions of their own: whoever started them may die.

What runs is read from the process table at each look, never from a pid file, so nothing can go stale between a
process's birth and a note about it.
"""
