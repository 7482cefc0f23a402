"""Decoders that look trained, and the slow twins of their two passes: one edit at a time, written into the weights, no batch.

Shape letters: B edits, M prompt vectors, T object tokens, S positions of prompt and object, D hidden width, V vocabulary.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from decoder.batch import PADDING
from decoder.model import ObjectDecoder

B, M, LAYER = 3, 4, 1
IDS_BT = torch.tensor([[5, 9, 30], [12, 4, PADDING], [7, PADDING, PADDING]])
# float32: a batch sums in another order than a row, and a cache splits attention's sums; three layers carry the rounding on.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def decoder_on(host, trained_layers=(), changed: bool = True, **settings) -> ObjectDecoder:
    """A decoder whose trained layers differ from the host's, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    prompt_MD = torch.randn(M, host.hidden_size, generator=generator)
    decoder = ObjectDecoder(host, edited_layers=[LAYER], trained_layers=trained_layers, prompt_MD=prompt_MD, **settings)
    for parameter in decoder.trained.parameters() if changed else ():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return decoder


def twin_logits(decoder: ObjectDecoder, in_place, edits, ids_BT: Tensor) -> Tensor:
    """One edit at a time: the prompt through the trained blocks into a cache; the object through the host's own, on that cache."""
    rows = []
    for b in range(len(edits)):
        twin = in_place(decoder.host, edits, b, LAYER)
        own = list(twin.blocks)
        put_in(decoder, twin)
        cache = DynamicCache()
        logits = [twin.model(inputs_embeds=decoder.prompt_MD.unsqueeze(0), **twin.with_cache(cache)).logits[0, -1:]]
        if decoder.scope == "prompt":
            for layer, block in enumerate(own):
                twin.blocks[layer] = block
        for token in ids_BT[b, :-1].clamp(min=0):
            logits.append(twin.model(token.view(1, 1), **twin.with_cache(cache)).logits[0])
        rows.append(torch.cat(logits))
    return torch.stack(rows)


def copy_of_tree(module: nn.Module) -> nn.Module:
    """The modules are copies, the parameters are not."""
    twin = copy.copy(module)
    twin._modules = {name: child and copy_of_tree(child) for name, child in module._modules.items()}
    return twin


def put_in(decoder: ObjectDecoder, twin) -> None:
    """The trained blocks into a twin; the edited W_V stays the twin's."""
    for layer in decoder.trained_layers:
        block = decoder.trained[str(layer)]
        if layer == LAYER:
            path, _, leaf = twin.down_proj_path(layer).rpartition(".")
            block = parent = copy_of_tree(block)
            for name in filter(None, path.split(".")):
                parent = parent._modules[name]
            parent.__dict__[leaf] = twin.down_proj(layer)
        twin.blocks[layer] = block


def plain_logits(decoder: ObjectDecoder, in_place, edits, ids_BT: Tensor, trained: bool = False) -> Tensor:
    """One edit at a time, one pass over [prompt, object], no cache."""
    embed = decoder.host.model.get_input_embeddings()
    rows = []
    for b in range(len(edits)):
        twin = in_place(decoder.host, edits, b, LAYER)
        if trained:
            put_in(decoder, twin)
        inputs_SD = torch.cat([decoder.prompt_MD, embed(ids_BT[b, :-1].clamp(min=0))])
        rows.append(twin.model(inputs_embeds=inputs_SD.unsqueeze(0), use_cache=False).logits[0, M - 1 :])
    return torch.stack(rows)
