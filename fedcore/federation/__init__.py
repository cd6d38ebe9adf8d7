"""Federations: configuration, partitions, one round from top to bottom, the journal, the in-process simulation."""
