"""Make the dataset of a config, or check the one that is there. One process, no torchrun.

python launch/prepare.py --config configs/shop.yaml
python launch/prepare.py --config configs/amazon_baby.yaml data.source=DIR
python launch/prepare.py --config configs/amazon_baby.yaml data.format=amazon2014 data.source=DIR data.dir=OUT
python launch/prepare.py data.format=tables data.source=DIR data.interactions='log/*.csv' tables.items=items.parquet
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.prepare import main

if __name__ == "__main__":
    launch("Make the dataset of a config, or check the one that is there.", main)
