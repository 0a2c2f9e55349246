"""What holds for every test."""

from hypothesis import settings

# How long an example takes tells of the machine's load, never of a defect.
settings.register_profile("pgherd", deadline=None)
settings.load_profile("pgherd")
