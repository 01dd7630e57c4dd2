"""Arion's front door: the command line, and a federation simulated in one process."""

import os

# Both are read once, when torch is loaded.
# Idle threads of torch's pool sleep instead of spinning: beside another process that needs the
# cores, spinning made a training step five times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors lie in huge pages: the kernel faults in 2 MiB at a time instead of 4 KiB, which
# took a sixth of a sparse layer's forward product.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
