"""Arion's front door: the command line, and a federation simulated in one process."""

import os

# Idle threads of torch's pool sleep instead of spinning: beside another process that needs the
# cores, spinning made a training step five times as slow. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
