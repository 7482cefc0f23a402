"""What a run on a real host will take, said before it begins: half as long or twice as long is possible, tenfold is not.

Everything is counted in tokens that pass through the host forward, and one such pass is timed.
"""

import math
import time

import torch

from data.produce.plan import imported
from data.produce.shards import ShardMaker
from decoder.config import TrainConfig
from decoder.host import Host
from decoder.utils.progress import duration
from decoder.utils.terminal import console

CONTEXT = 6  # positions of an edit's prompt that a context adds: subject, what follows it, object
USUAL_STEPS = 0.6  # of the most steps: edits stop early
SCORED = 130  # tokens of the prompts that an edit is scored on
BACKWARD = 2  # forward, and backward to the activations
OVERHEAD = 1.5  # what is no matrix product
SAMPLE, TIMES = (16, 16), 3


def announce(cfg: TrainConfig, host: Host) -> None:
    """Says how many edits are to be made and about how long they and the fit take here. A stream, or imported edits, are not asked."""
    if cfg.data.streaming or imported(cfg, host):
        return
    to_make, second = ShardMaker(cfg, host).left(), seconds_a_token(host) * OVERHEAD
    above = 1 - cfg.edits.layers[-1] / host.layers
    steps, contexts = getattr(cfg.edits, "steps", 0), getattr(cfg.edits, "contexts", 1)
    an_edit = CONTEXT * contexts * steps * USUAL_STEPS * BACKWARD * above + SCORED
    a_relation = cfg.splits.train_per_relation + cfg.splits.spelt_per_relation
    trained = min(cfg.splits.train_relations * a_relation, cfg.data.max_train or math.inf)
    fit = trained * cfg.optim.epochs * cfg.decoder.prompt_length * BACKWARD * above
    made = f"{to_make:,} edits to make, about {duration(to_make * an_edit * second)}" if to_make else "edits are there"
    console().print(f"  on this machine: {made}; fit of at most {cfg.optim.epochs} epochs, about {duration(fit * second)}", highlight=False)


@torch.no_grad()
def seconds_a_token(host: Host) -> float:
    """The quickest of a few forwards of a small batch, a token; its first one warms up."""
    ids = torch.zeros(SAMPLE, dtype=torch.long, device=host.device)
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        host.model.base_model(input_ids=ids, use_cache=False).last_hidden_state.sum().item()
        taken.append(time.perf_counter() - started)
    return min(taken) / ids.numel()
