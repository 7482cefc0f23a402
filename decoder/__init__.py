"""Reading the object of a knowledge edit out of an edited weight matrix."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is first imported. Threads that spin while they wait slow two programs on one machine down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
