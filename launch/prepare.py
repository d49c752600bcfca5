"""Make the dataset of a config, or check the one that is there. One process, no torchrun.

python launch/prepare.py --config configs/shop.yaml
python launch/prepare.py --config configs/amazon_baby.yaml data.source=DIR
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.prepare import main

if __name__ == "__main__":
    launch("Make the dataset of a config, or check the one that is there.", main)
