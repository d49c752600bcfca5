"""Print in what settings two runs differ, and by how much their results and costs do.

python launch/compare.py runs/with runs/without
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.report import compare_command_line, compare_main

if __name__ == "__main__":
    launch("Print in what two runs differ.", compare_main, parse=compare_command_line)
