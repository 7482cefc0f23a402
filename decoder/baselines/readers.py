"""Readers that nothing is fitted for.

Base known: the reader has the host's own W_V, so the update W' - W and its factors. Base unknown: it has W' alone.
Settings of a baseline (its ridge, its template) are chosen on validation edits. The regressions have a file of their own.

Shape letters: B edits, N training edits, M prompt length, D hidden width, F MLP width, V vocabulary, T object tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from decoder.answers import best_texts, planted_texts, text_of
from decoder.baselines.base import Evidence, Prediction, Reader, canonical_value, first_tokens_right
from decoder.batch import EditBatch
from decoder.dense import applied
from decoder.edit import Edits, LayerEdits, RankOneEdit
from decoder.host import Host
from decoder.model import ObjectDecoder
from decoder.scores import exact_match, may_become

CARRIER_STRENGTHS = (2.0, 3.5, 5.0, 7.0)
CHUNK = 128


def logit_lens(evidence: Evidence) -> Reader:
    """The value through final norm and unembedding (nostalgebraist 2020)."""
    value = canonical_value(evidence.train)
    return lambda batch: Prediction(evidence.host.unembed(value(batch)).argmax(-1))


def logit_lens_base_free(evidence: Evidence) -> Reader:
    """The top left singular vector of W' through final norm and unembedding; of its two signs the more confident one."""

    def read(batch: EditBatch) -> Prediction:
        top_BD = torch.cat([_top_left_singular(weight_BDF) for weight_BDF in _dense_chunks(evidence, batch)])
        logits_2BV = torch.stack([evidence.host.unembed(top_BD), evidence.host.unembed(-top_BD)])
        peak_2B, token_2B = logits_2BV.softmax(-1).max(-1)
        return Prediction(token_2B.gather(0, peak_2B.argmax(0, keepdim=True))[0])

    return read


def nearest_edit(evidence: Evidence) -> Reader:
    """The object of the training edit whose value has the highest cosine."""
    value = canonical_value(evidence.train)
    train_ND = normalize(value(evidence.train))

    def read(batch: EditBatch) -> Prediction:
        nearest_B = (normalize(value(batch)) @ train_ND.T).argmax(1)
        return _known_object(evidence, evidence.train.object_ids_BT[nearest_B], batch)

    return read


def object_prior(evidence: Evidence) -> Reader:
    """Always the most frequent training object."""
    ((most_frequent, _),) = Counter(map(tuple, evidence.train.object_ids_BT.tolist())).most_common(1)
    found_1T = torch.tensor([most_frequent], device=evidence.train.object_ids_BT.device)
    return lambda batch: _known_object(evidence, found_1T.expand(len(batch.edits), -1), batch)


def untrained_prompt(evidence: Evidence) -> Reader:
    """The decoder before training."""
    evidence.start.learn_start(evidence.train.object_ids_BT[:, 0].tolist())
    evidence.start.learn_end(evidence.train.edits, evidence.train.object_ids_BT)
    return lambda batch: _read(evidence, evidence.start, batch.edits, batch)


def carrier(evidence: Evidence) -> Reader:
    """Nothing trained: the value's direction added at the mean subject, followed by a template of a training relation.

    The template, then the strength (times the clean output's norm), are those that read most validation edits.
    """
    host, value = evidence.host, canonical_value(evidence.train)
    prompts = [carrier_prompt(host, evidence.subjects, template) for template in evidence.templates]

    def planted(batch: EditBatch, strength: float) -> AtSubject:
        return AtSubject(batch.edits.key_BF, strength * normalize(value(batch)))

    def behind(prompt_MD: Tensor) -> ObjectDecoder:
        return ObjectDecoder(host, edited_layers=[evidence.edited_layer], trained_layers=[], prompt_MD=prompt_MD)

    def says_first(prompt_MD: Tensor, strength: float) -> Reader:
        """First tokens only, which is what choices go by."""
        return lambda batch: Prediction(behind(prompt_MD)(planted(batch, strength), batch.object_ids_BT[:, :1])[:, 0].argmax(-1))

    size = _clean_output_norm(evidence, prompts[0])
    prompt_MD = max(prompts, key=lambda prompt: first_tokens_right(evidence, says_first(prompt, 5.0 * size)))
    strength = size * max(CARRIER_STRENGTHS, key=lambda times: first_tokens_right(evidence, says_first(prompt_MD, times * size)))
    decoder = behind(prompt_MD)
    decoder.learn_start(evidence.train.object_ids_BT[:, 0].tolist())
    decoder.learn_end(planted(evidence.train, strength), evidence.train.object_ids_BT)
    return lambda batch: _read(evidence, decoder, planted(batch, strength), batch)


@dataclass(frozen=True)
class AtSubject(RankOneEdit):
    """The value added with gain 1 at the first prompt position and nowhere else; object tokens pass unedited."""

    def output(self, x_BTF: Tensor, y_BTD: Tensor, bias_D: Tensor | None, memory_budget: int = 0) -> Tensor:
        out_BTD = y_BTD.expand(len(self), -1, -1).clone()
        if x_BTF.shape[1] > 1:
            out_BTD[:, 0] += self.value_BD
        return out_BTD


def _read(evidence: Evidence, decoder: ObjectDecoder, edits: Edits, batch: EditBatch) -> Prediction:
    """What a decoder with some prompt says, whole objects, in chunks; none is spelt further once it can no longer be right."""
    host, first, exact, planted = evidence.host, [], [], planted_texts(evidence.host, batch)
    for start in range(0, len(edits), CHUNK):
        wanted = planted[start : start + CHUNK]
        beams = decoder.read(
            edits[start : start + CHUNK],
            beams=evidence.beams,
            max_object_tokens=evidence.max_object_tokens,
            worthwhile=lambda row, begun, wanted=wanted: any(may_become(text_of(host, ids), wanted[row]) for ids in begun),
        )
        first.append(beams.first_token_B)
        exact += map(exact_match, (text for text, _ in best_texts(host, beams)), wanted)
    return Prediction(torch.cat(first), exact)


def _known_object(evidence: Evidence, found_BT: Tensor, batch: EditBatch) -> Prediction:
    """An answer that is some training object."""
    found = (text_of(evidence.host, ids) for ids in found_BT.tolist())
    return Prediction(found_BT[:, 0], list(map(exact_match, found, planted_texts(evidence.host, batch))))


def _dense_chunks(evidence: Evidence, batch: EditBatch) -> list[Tensor]:
    weight_DF = evidence.host.weight_DF(evidence.edited_layer)
    edits = batch.edits.last if isinstance(batch.edits, LayerEdits) else batch.edits
    chunks = [edits[start : start + CHUNK] for start in range(0, len(edits), CHUNK)]
    return [applied(chunk, weight_DF).weight_BDF.float() for chunk in chunks]


def _top_left_singular(weight_BDF: Tensor) -> Tensor:
    """(B, D), from the smaller Gram matrix."""
    return torch.linalg.eigh(weight_BDF @ weight_BDF.transpose(1, 2)).eigenvectors[:, :, -1]


def _clean_output_norm(evidence: Evidence, prompt_MD: Tensor) -> float:
    """Norm of the unedited projection's output at the mean subject."""
    outputs: list[Tensor] = []
    with evidence.host.down_proj(evidence.edited_layer).register_forward_hook(lambda module, args, output: outputs.append(output)):
        evidence.host.model(inputs_embeds=prompt_MD.unsqueeze(0).to(evidence.host.dtype), use_cache=False, logits_to_keep=1)
    # Some families flatten their tokens before the projection.
    return float(outputs[0].flatten(0, -2)[0].norm())


def carrier_prompt(host: Host, subjects: Sequence[str], template: str) -> Tensor:
    """The mean embedding of the subjects' last tokens, then what a template says after its subject; (M, D)."""
    embed = host.model.get_input_embeddings()
    last_tokens = torch.tensor([host.object_ids(subject)[-1] for subject in subjects], device=host.device)
    # A template may end with its subject: then nothing follows.
    suffix = torch.tensor(host.object_ids(template.split("{}")[1]), dtype=torch.long, device=host.device)
    return torch.cat([embed(last_tokens).mean(0, keepdim=True), embed(suffix)]).detach()
