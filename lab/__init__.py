"""A real Kubernetes of several nodes on one Linux machine, made to be broken: see lab/README.md.

The model: a *machine* is a set of namespaces (processes, mounts, network, host name, IPC) whose first process is our
own `lab.init`. One machine is the control plane and the switch the others plug into; each other one is a node. So
killing one process is a power failure, a link is a veth pair to be pulled, and nothing a machine does can reach the
host: when its first process is gone, its processes, mounts, interfaces, routes and packet rules are gone as well.

What is left to clean up, cgroups and one state directory, has names known beforehand; every process joins the lab's
cgroup before it does anything else. Taking the lab down therefore needs no memory of how far bringing it up had come.
"""
