"""Split the graph and the features into one part per machine, and show what came out.

    python launch/partition.py --config configs/debug.yaml partition.parts=2

Prepares the dataset first where it is not there. Parts that fit the dataset and the settings are left as they are.
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.partition import main

if __name__ == "__main__":
    launch("Partition the graph of a prepared dataset, one part per machine.", main)
