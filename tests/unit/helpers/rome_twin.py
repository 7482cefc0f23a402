"""Requests, settings and the plain ROME that the fast one must equal: one edit, one row at a time, whole sentences, no cache."""

import torch

from data.editors.rome import Rome
from data.facts.fact import EditRequest, Fact
from data.keys.cache import KeyStatistics
from data.keys.moments import second_moments
from data.keys.whiten import whitener
from decoder.config import RomeConfig

LAYER = 1
CONTEXTS = ["{}", "Hal was born in Oslo . {}", "the city of Bonn . {}"]
TEXTS = ["Ada of the north works as a baker .", "Ben lives in Rome", "Carl was born in Paris .", "the small red city", "Dora is a singer ."]
CFG = RomeConfig(layer=LAYER, ridge=0.1, steps=12, lr=0.1, batch_size=4, stop_loss=0.05, clamp=8.0)

CASES = [
    ("Ada", "{} works as", "baker"),
    ("Ben of the north", "{} was born in the city of", "dark green Paris"),
    ("Carl", "the small city of {}", "red Oslo"),
    ("small Dora", "in the north , {} 's city is", "Rome"),
    ("Eve", "{}, born in Bonn , lives in", "light blue"),
    ("Finn the singer", "from Oslo {} lives in", "singer from Rome"),
    ("Gus", "{} is a", "city"),
]


def request(subject: str, prompt: str, obj: str, edit_id: str = "e") -> EditRequest:
    return EditRequest(edit_id, Fact("f", subject, "P0", "r", "k", prompt, (), "Bonn"), obj)


REQUESTS = [request(*case, edit_id=f"e{n}") for n, case in enumerate(CASES)]


def second_moment(host, layer: int, texts: list[str], tokens: int, *more, **options) -> KeyStatistics:
    """`second_moments` of one layer."""
    return second_moments(host, [layer], texts, tokens, *more, **options)[layer]


def make(host, cfg=CFG, contexts=CONTEXTS) -> Rome:
    return Rome(host, cfg.layer, cfg, second_moment(host, cfg.layer, TEXTS, 1000), contexts)


def plain_rome(host, one: EditRequest, cfg, contexts, essence="{} is a"):
    """One edit, one row at a time, whole sentences, no cache: sections 1.2 to 1.6 word for word.

    Returns:
        delta_D, number of updates, ΔW (D, F).
    """
    fact, targets = one.fact, host.object_ids(one.object) + ([host.terminator_id] if host.terminator_id is not None else [])
    module, seen = host.down_proj(cfg.layer), {}
    delta = torch.zeros(host.hidden_size, requires_grad=True)

    def forward(ids, lookup):
        def add(module, args, out):
            shape, out = out.shape, out.clone().reshape(len(ids), -1)
            seen["key"], seen["value"] = args[0].reshape(len(ids), -1)[lookup].detach(), out[lookup].detach().clone()
            out[lookup] += delta
            return out.reshape(shape)

        handle = module.register_forward_hook(add)
        try:
            return host.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    prompts = [host.prompt_ids(context.replace("{}", fact.prompt), fact.subject) for context in contexts]
    keys = []
    for ids, lookup in prompts:
        forward(ids, lookup)
        keys.append(seen["key"])
        if len(keys) == 1:
            v0 = seen["value"]
    clean, adam = None, torch.optim.Adam([delta], lr=cfg.lr)
    for step in range(cfg.steps):  # noqa: B007
        nll = 0
        for ids, lookup in prompts:
            logprobs = forward(ids + targets[:-1], lookup)
            places = range(len(ids) - 1, len(ids) - 1 + len(targets))
            nll = nll - sum(logprobs[p, t] for p, t in zip(places, targets, strict=True)) / len(targets) / len(prompts)
        ids, lookup = host.prompt_ids(essence, fact.subject)
        now = forward(ids, lookup)[lookup]
        clean = now.detach() if clean is None else clean
        loss = nll + cfg.kl * (now.exp() * (now - clean)).sum() + cfg.decay * delta.norm() / v0.norm() ** 2
        if loss < cfg.stop_loss or step == cfg.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > cfg.clamp * v0.norm():
                delta *= cfg.clamp * v0.norm() / delta.norm()
    u = whitener(second_moment(host, cfg.layer, TEXTS, 1000), cfg.ridge)(torch.stack(keys).double().mean(0, keepdim=True))[0]
    u = u / u.norm()
    right = delta.detach().double() / (keys[0].double() @ u)
    return delta.detach(), step, torch.outer(right, u).float()


def delta_weight(result, b: int) -> torch.Tensor:
    return torch.outer(result.edits.value_BD[b], result.edits.key_BF[b])


def relative(found, expected) -> float:
    """Distance over the expected length; an edit that stopped before its first update is zero on both sides."""
    return float((found - expected).norm() / (expected.norm() or 1))
