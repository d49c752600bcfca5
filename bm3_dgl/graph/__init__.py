"""The user-item graph: built, partitioned, and opened through DGL's distributed graph store."""
