"""The command `python -m flaxformer_lab.train`: `python train.py --config=configs/digits.py --workdir=runs/digits`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("flaxformer_lab.train", run_name="__main__")
