"""Find the pretext task that suits your images: `python compare.py data=folder data.pretrain_dir=photos`."""

import sys

from ssl_lightning.launch.commands import compare_main

if __name__ == "__main__":
    sys.exit(compare_main(sys.argv[1:]))
