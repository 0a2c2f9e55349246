"""pgherd: distributed PostgreSQL as a service, from one declaration."""

__version__ = "0.1.0"
