"""Trains the pocket host: a small language model that knows the facts of a fact set.

Qwen3 rather than Qwen2: `AutoTokenizer` replaces whatever tokenizer lies beside a model of type qwen2 by Qwen2's own (transformers 5).

The leading blocks attend to the token itself only, so a subject's last token is enriched alone, as in large models, and later blocks move
the answer to the end of the sentence. That is what ROME needs.

B rows, T tokens, N rows times tokens, V vocabulary, S subjects, D hidden width.
"""

import logging
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from data.facts.fact import FactSet
from data.pocket.text import training_rows
from data.pocket.tokenizer import build_tokenizer
from decoder.config import HostConfig, PocketConfig
from decoder.utils.files import whole_folder
from decoder.utils.json_files import write_json

BETAS = (0.9, 0.98)
CLIP = 1.0
LAST_LR = 0.02  # share of the peak learning rate at the last step
IGNORED = -100
RECALL = TypeAdapter(Annotated[dict[str, FiniteFloat], Field(min_length=1)])  # by template

log = logging.getLogger(__name__)


def build_pocket_host(cfg: HostConfig, facts: FactSet, folder: Path) -> None:
    """Trains the pocket host and writes model, tokenizer and `recall.json` into `folder`.

    The folder appears whole or not at all. The same settings and facts give the same weights on the same machine.

    Args:
        cfg: `cfg.pocket` is the recipe, `cfg.seed` the seed of text and weights.
        facts: what the host is to know.
        folder: must not exist yet.

    Raises:
        ValueError: if the folder exists, or if the recall of a template is below `cfg.pocket.min_recall`.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it to build the pocket host anew")
    tokenizer = build_tokenizer(facts, cfg.pocket.object_vocabulary)
    model = new_model(cfg.pocket, tokenizer, cfg.seed)
    draw_subjects(model, tokenizer, facts, cfg)
    train(model, tokenizer, facts, cfg)
    recall = measure_recall(model, tokenizer, facts)
    log.info("pocket host, seed %d: recall %s", cfg.seed, recall)
    refuse_low_recall(recall, cfg.pocket.min_recall)
    save(model, tokenizer, recall, folder)


def new_model(cfg: PocketConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """The host before training; leaves the global random state as it was."""
    full_layers = cfg.layers - cfg.windowed_layers
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.mlp_size,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.heads,
        head_dim=cfg.hidden_size // cfg.heads,
        max_position_embeddings=512,
        layer_types=["sliding_attention"] * cfg.windowed_layers + ["full_attention"] * full_layers,
        use_sliding_window=cfg.windowed_layers > 0,
        sliding_window=cfg.window,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # The cache made from the config cannot hold a window of one token (transformers 5): generate() recomputes the few tokens instead.
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.update(use_cache=False, max_new_tokens=16)
    return model


def draw_subjects(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, facts: FactSet, cfg: HostConfig) -> None:
    """Draws the embeddings of the subjects' last tokens and keeps gradients off them.

    Learnt embeddings gather subjects with the same object, and an edit of one then spills over to the others. Drawn ones keep subjects
    apart, and the blocks have to look their facts up; what all of them share is the direction by which a decoder knows a subject.
    """
    rows_S = torch.tensor(sorted({tokenizer.encode(fact.subject)[-1] for fact in facts.facts}))
    weight_VD = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(cfg.seed + 1)
    own_SD = torch.randn(len(rows_S), weight_VD.shape[1], generator=generator)
    shared_D = torch.randn(weight_VD.shape[1], generator=generator)
    cosine = cfg.pocket.subject_cosine
    with torch.no_grad():
        weight_VD[rows_S] = cfg.pocket.subject_spread * ((1 - cosine) ** 0.5 * own_SD + cosine**0.5 * shared_D)
    weight_VD.register_hook(lambda grad_VD: grad_VD.index_fill(0, rows_S, 0.0))


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, facts: FactSet, cfg: HostConfig) -> None:
    """Trains in place with AdamW, linear warm-up and linear decay."""
    recipe = cfg.pocket
    ids_NT, weights_NT = training_rows(facts, tokenizer, recipe.steps * recipe.batch_size, recipe.row_tokens, cfg.seed)
    # Weight decay would shrink the embeddings that are to stay as drawn.
    embedding = model.get_input_embeddings().weight
    rest = [parameter for parameter in model.parameters() if parameter is not embedding]
    groups = [{"params": [embedding], "weight_decay": 0.0}, {"params": rest, "weight_decay": recipe.weight_decay}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: lr_share(step, recipe.warmup_steps, recipe.steps))
    batches = zip(ids_NT.split(recipe.batch_size), weights_NT.split(recipe.batch_size), strict=True)
    model.train()
    quiet = not get_console().is_terminal
    for ids_BT, weights_BT in track(batches, "training the pocket host", total=recipe.steps, transient=True, disable=quiet):
        loss = weighted_loss(model(input_ids=ids_BT[:, :-1]).logits, ids_BT[:, 1:], weights_BT[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval()


def lr_share(step: int, warmup_steps: int, steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return LAST_LR + (1 - LAST_LR) * (steps - step) / max(1, steps - warmup_steps)


def weighted_loss(logits_BTV: Tensor, targets_BT: Tensor, weights_BT: Tensor) -> Tensor:
    losses_N = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
    return (losses_N * weights_BT.flatten()).sum() / weights_BT.sum()


@torch.inference_mode()
def measure_recall(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, facts: FactSet) -> dict[str, float]:
    """Share of facts, by template, whose greedy continuation is exactly the object and the full stop.

    Every token of the answer must be the most likely one given the right answer so far, which is the same as greedy decoding.
    """
    templates = len(facts.facts[0].templates)
    recall = {}
    for index in range(templates):
        prompts = [tokenizer.encode(fact.templates[index].format(fact.subject)) for fact in facts.facts]
        answers = [tokenizer.encode(f"{fact.object_true} .") for fact in facts.facts]
        width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        ids_BT = torch.full((len(prompts), width), tokenizer.pad_token_id)
        targets_BT = torch.full((len(prompts), width), IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start, end = len(prompt), len(prompt) + len(answer)
            ids_BT[row, :end] = torch.tensor(prompt + answer)
            targets_BT[row, start - 1 : end - 1] = torch.tensor(answer)
        predicted_BT = torch.cat([model(input_ids=ids).logits.argmax(-1) for ids in ids_BT.split(128)])
        exact_B = ((predicted_BT == targets_BT) | (targets_BT == IGNORED)).all(dim=1)
        recall[f"template_{index}"] = round(exact_B.float().mean().item(), 4)
    return recall


def read_recall(folder: Path) -> dict[str, float]:
    """What `measure_recall` found when the host in `folder` was built.

    Raises:
        ValueError: the file is not there or damaged.
    """
    file = folder / "recall.json"
    try:
        return RECALL.validate_json(file.read_bytes(), strict=True)
    except (OSError, ValidationError):
        raise ValueError(f"{file} is missing or damaged; remove {folder} to build the pocket host anew") from None


def refuse_low_recall(recall: dict[str, float], lowest: float) -> None:
    worst = min(recall, key=recall.__getitem__)
    if recall[worst] < lowest:
        raise ValueError(
            f"pocket host recalls {recall[worst]:.3f} of the facts on {worst}, host.pocket.min_recall asks for {lowest}; "
            "train longer (host.pocket.steps) or take another host.seed"
        )


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, recall: dict[str, float], folder: Path) -> None:
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        write_json(unfinished / "recall.json", recall)
