"""The level-triggered loop: observe the world, plan the difference, act on it.

``observe`` reads the world and never memory, ``plan`` is a pure function of what was seen, ``act`` carries out one
step. The loop can be killed anywhere; the next one starts from what is there.
"""
