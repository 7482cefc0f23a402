"""Keys by which a decoder learns to switch every edit on: those of the training subjects and of subjects nobody has heard of.

A decoder that only meets the keys of some hundred training subjects fits its prompt to them and leaves the edits of other subjects half
switched on. Keys cost one short forward and no edit, so subjects are made up by the thousand: a training prompt up to its subject, whose
last token is replaced by a draw from the spread of such tokens' embeddings.

Shape letters: K keys, N training prompts, T positions, D hidden width, F MLP width.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from data.keys.moments import keys_of
from data.keys.whiten import Solver
from decoder.host import OPENING, Host

BATCH = 512
TOKENS = 4096  # of a vocabulary


def probe_keys(host: Host, edited_layer: int, whiten: Solver, prompts: Sequence[tuple[str, str]], made_up: int, seed: int) -> Tensor:
    """Keys (K, F), K = distinct prompts + `made_up`, each scaled so that its edit's gain on its own subject is 1.

    Args:
        host: gives the keys k₀.
        edited_layer: that the keys are of.
        whiten: k₀ -> C⁻¹k₀, of the editor that made the edits.
        prompts: (prompt with {}, subject) of the training edits.
        made_up: how many subjects to make up.
        seed: of the draws.
    """
    rows = sorted({tuple(ids[: lookup + 1]) for ids, lookup in (host.prompt_ids(prompt, subject) for prompt, subject in prompts)})
    embed = host.model.get_input_embeddings()
    row_embeddings = [embed(torch.tensor(row, device=host.device)).detach() for row in rows]
    last_ND = torch.stack([row_TD[-1] for row_TD in row_embeddings]).float()
    spread_D = last_ND.std(0) if len(rows) > 1 else torch.zeros_like(last_ND[0])
    generator = torch.Generator().manual_seed(seed)
    drawn_KD = torch.randn(made_up, last_ND.shape[1], generator=generator).to(last_ND) * spread_D + last_ND.mean(0)
    picked = torch.randint(len(rows), (made_up,), generator=generator).tolist()
    invented = [
        torch.cat([row_embeddings[n][:-1], drawn_D.to(last_ND)[None].to(embed.weight.dtype)])
        for n, drawn_D in zip(picked, drawn_KD, strict=True)
    ]
    key_KF = _last_keys(host, edited_layer, [*row_embeddings, *invented]).double().cpu()
    whitened_KF = whiten(key_KF)
    return (whitened_KF / (whitened_KF * key_KF).sum(dim=1, keepdim=True)).float()


def lookup_keys(host: Host, edited_layer: int, prompts: Sequence[tuple[str, str]]) -> Tensor:
    """Key (N, F) of the subject of each prompt with {}, on the host as it is."""
    embed = host.model.get_input_embeddings()
    rows = [ids[: lookup + 1] for ids, lookup in (host.prompt_ids(prompt, subject) for prompt, subject in prompts)]
    return _last_keys(host, edited_layer, [embed(torch.tensor(row, device=host.device)).detach() for row in rows])


def vocabulary_keys(host: Host, edited_layer: int) -> Tensor:
    """Key (K, F) of each token of the vocabulary behind a word, of `TOKENS` from all over it at most."""
    count = len(host.unembedding_VD)
    opening = torch.tensor(host.text_ids(OPENING), device=host.device)
    rows = [torch.cat([opening, opening.new_tensor([token])]) for token in range(0, count, -(-count // TOKENS))]
    embed = host.model.get_input_embeddings()
    return _last_keys(host, edited_layer, [embed(row).detach() for row in rows])


def _last_keys(host: Host, edited_layer: int, rows: list[Tensor]) -> Tensor:
    """Key (K, F) at the last position of each row of embeddings."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for n, row_TD in enumerate(rows):
        by_length[len(row_TD)].append(n)
    key_KF = torch.empty(len(rows), host.mlp_size(edited_layer), device=host.device)
    for places in by_length.values():
        for start in range(0, len(places), BATCH):
            batch = places[start : start + BATCH]
            keys_NF = keys_of(host, edited_layer, inputs_embeds=torch.stack([rows[n] for n in batch]))
            key_KF[batch] = keys_NF.unflatten(0, (len(batch), -1))[:, -1].float()
    return key_KF
