"""Processes: who am I, how ranks talk, the graph server, failing together."""
