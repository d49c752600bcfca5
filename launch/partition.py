"""Split the graph and the features into one part per machine, and show what came out; or plan what a job will take.

    python launch/partition.py --config configs/shop.yaml partition.parts=2
    python launch/partition.py --config configs/shop.yaml --plan --ranks 8
    python launch/partition.py --plan --machines 16,64 --users 200_000_000 --items 20_000_000 --interactions 1_000_000_000

Prepares the dataset first where it is not there (a plan from counts needs none). Parts that fit the dataset and the
settings are left as they are.
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.partition import Command

if __name__ == "__main__":
    command = Command()
    launch("Partition the graph of a prepared dataset, one part per machine.", command.run, parse=command.parse)
