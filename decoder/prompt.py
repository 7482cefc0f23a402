"""Prompt vectors that nobody has trained: the decoder's random start, and the carrier baseline's.

Shape letters: M prompt vectors, D hidden width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder.host import Host


def random_prompt(host: Host, length: int, seed: int) -> Tensor:
    """Prompt vectors (M, D) drawn like the host's token embeddings: same mean and spread in every coordinate."""
    embed = host.model.get_input_embeddings()
    embedding_VD = embed.weight.float().cpu()
    if scale := getattr(embed, "scalar_embed_scale", None):  # Gemma scales inside the module
        embedding_VD = embedding_VD * scale
    generator = torch.Generator().manual_seed(seed)
    noise_MD = torch.randn(length, embedding_VD.shape[1], generator=generator)
    return embedding_VD.mean(0) + noise_MD * embedding_VD.std(0)


def carrier_prompt(host: Host, subjects: Sequence[str], template: str) -> Tensor:
    """The mean embedding of the subjects' last tokens, then what a template says after its subject; (M, D)."""
    embed = host.model.get_input_embeddings()
    last_tokens = torch.tensor([host.object_ids(subject)[-1] for subject in subjects], device=host.device)
    # A template may end with its subject: then nothing follows.
    suffix = torch.tensor(host.object_ids(template.split("{}")[1]), dtype=torch.long, device=host.device)
    return torch.cat([embed(last_tokens).mean(0, keepdim=True), embed(suffix)]).detach()
