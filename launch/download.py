"""Fetch the source files of a dataset into data.source; goes on where an interrupted call ended.

python launch/download.py data.format=amazon2014 data.category=Baby data.source=raw/baby download.url=https://HOST/productGraph
python launch/download.py data.source=raw/mine download.url=https://HOST/DIR "download.files=[log.parquet,items.parquet]"
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.download import main

if __name__ == "__main__":
    launch("Fetch the source files of a dataset into data.source.", main)
