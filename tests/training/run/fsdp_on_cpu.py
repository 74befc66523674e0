"""``training.train`` under FSDP without GPUs: accelerate shards GPUs' models only, so the processes pass for such."""

import training  # noqa: F401  # isort: skip  (makes diffusers importable, so it comes first)

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from training.train import main

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
sys.exit(main())
