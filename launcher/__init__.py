"""Many runs: one after the other, in several processes, on Ray, on SLURM. May import decoder/ and data/."""
