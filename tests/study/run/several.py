"""A study in as many processes as a launcher starts: ``accelerate launch -m tests.study.run.several STORE``."""

import sys

import torch

from tests.study import tiny

if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny.study().run(tiny.examples(int(sys.argv[2])), sys.argv[1], progress=False)
