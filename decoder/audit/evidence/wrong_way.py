"""Whether a base is what was edited, and the suspect it was made of: the two may have been given the wrong way round.

Their difference is the same but for its sign. What the matrices answer is not: an edited one answers to its subject as no other does.
"""

from collections.abc import Sequence
from typing import Any

import torch

from decoder.audit.evidence.located import Located
from decoder.audit.locate import outstanding
from decoder.audit.reversal import image
from decoder.host import Host

EXCHANGED = "base= and suspect= may have been exchanged, and a repair would write the edit in: give them the other way round"


def wrong_way_round(host: Host, unedited: Host, located: Sequence[Located], least: float) -> list[dict[str, Any]]:
    """The edits to whose subject the base answers as edited matrices do, and the suspect does not, with the scores of both.

    Args:
        located: in the difference; what is about nobody in the list no score was calibrated on.
        least: score from which the scan of the suspect takes a layer for edited.
    """
    found = []
    for one in located:
        if not one.asked:
            continue
        keys_NF = torch.cat([one.key_F[None], one.keys_LF])
        own, base = (float(outstanding(image(each.weight_DF(one.layer), keys_NF).norm(dim=1))[0][0]) for each in (host, unedited))
        if own < least <= base:
            found.append({"layer": one.layer, "subject": one.asked, "base": base, "suspect": own})
    return found


def as_note(found: Sequence[dict[str, Any]]) -> list[str]:
    """The same in a line, if there is any."""
    return [
        f"base= and suspect= may be the wrong way round: in layer {one['layer']} the base answers to {one['subject']} as edited "
        f"checkpoints do (score {one['base']:.2f}), the suspect does not ({one['suspect']:.2f})."
        for one in found[:1]
    ]
