"""Write the backbone of a run for another library: `python export.py run=<run folder> format=onnx`."""

import sys

from ssl_lightning.launch.commands import export_main

if __name__ == "__main__":
    sys.exit(export_main(sys.argv[1:]))
