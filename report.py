"""Write the table and the page of stored runs: `python report.py benchmark=cifar10_six`."""

import sys

from ssl_lightning.launch.commands import report_main

if __name__ == "__main__":
    sys.exit(report_main(sys.argv[1:]))
