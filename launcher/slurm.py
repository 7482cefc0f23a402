"""A grid as an sbatch script: an array with one line per run. It is printed; nothing is sent to a cluster."""

import json
import shlex
from pathlib import Path

from decoder.config.grids import values
from launcher.grid import Grid, by_edits


def sbatch_script(grid: Grid) -> str:
    """The script of the runs that are not finished, empty if all are; hosts and edits are made before, by the commands at its head."""
    left = [run for run in grid.runs if not run.finished()]
    if not left:
        return ""
    config = left[0].config
    options = {
        "job-name": f"palimpsest-{config.experiment}",
        "array": f"0-{len(left) - 1}" + (f"%{config.launcher.jobs}" if config.launcher.jobs else ""),
        "ntasks": 1,
        "cpus-per-task": config.launcher.cpus,
        "gpus-per-task": int(config.launcher.gpus) or None,
        "mem": config.launcher.memory,
        "time": config.launcher.time,
        "partition": config.launcher.partition,
        "output": "slurm-%A-%a.txt",  # SLURM makes no folders, and says nothing when one is missing
    }
    makes = [f"#   {_line(('python', '-m', 'data.produce'), run.argv)}" for run, *_ in by_edits(left).values()]
    # As a grid of one, or a run that is finished when its task starts would be done again.
    runs = [f"  {index}) {_line(('python', 'train.py', '-m'), run.argv)} ;;" for index, run in enumerate(left)]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None),
            "#",
            "# Make the hosts and edits first, or runs that start together would make them twice:",
            *makes,
            "",
            "set -euo pipefail",
            f"cd {shlex.quote(str(Path.cwd()))}",
            'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
            'case "$SLURM_ARRAY_TASK_ID" in',
            *runs,
            "esac",
            "",
        ]
    )


def _line(program: tuple[str, ...], argv: tuple[str, ...]) -> str:
    return shlex.join((*program, *(_one_value(word) for word in argv if not word.startswith("launcher"))))


def _one_value(word: str) -> str:
    """A setting that `-m` does not take for several: a comma in free text is quoted."""
    key, _, text = word.partition("=")
    return word if len(values(text, key)) == 1 else f"{key}={json.dumps(text)}"
