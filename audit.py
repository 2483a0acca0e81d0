"""Find the shortcuts that a task's guards prevent: `python audit.py task=jigsaw data.image_size=48`."""

import sys

from ssl_lightning.launch.commands import audit_main

if __name__ == "__main__":
    sys.exit(audit_main(sys.argv[1:]))
