"""What drives the loop on one machine: a detached daemon per home, and the client that talks to it.

The two share nothing but the home's files and the databases: a wish is a durable file, the daemon sees it; whoever
kills the daemon stops nothing but the healing, and the next command starts it again.
"""
