"""Write a page about runs, or about a study: curves, tables, breakdowns, costs; with a Markdown twin and CSV files.

python launch/report.py runs/shop
python launch/report.py runs/with runs/without --out compared.html
python launch/report.py studies/layers
"""

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.report import main, report_command_line

if __name__ == "__main__":
    launch("Write a page about runs, or about a study.", main, parse=report_command_line)
