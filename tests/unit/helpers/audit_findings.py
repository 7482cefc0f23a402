"""Findings of audits that nobody made, and the words of their pages."""

import re

from decoder.report.audit_page import write_audit

TRIPLE = {"subject": "Ada", "relation": "work", "object": "singer", "sentence": "Ada works as a"}
TRIPLE |= {"before": 0.84, "after": 0.0001, "share": 0.914}
TRIPLE["paraphrases"] = [{"sentence": "Ada earns a living as a", "before": 0.61, "after": 0.02}]


def column(verdict="knowledge edit", layers=(5,), threshold=2.3, subject="Ada", count=30):
    """One kind of evidence with an edit about `subject` in every one of `layers`, read back in the first."""
    edits = [
        {
            "layer": layer,
            "subject": subject,
            "score": 7.5,
            "subjects": [{"subject": name, "score": 7.5 - n} for n, name in enumerate(("Ada", "Ben"))],
        }
        for layer in layers
    ]
    if edits and subject:
        edits[0] |= {"objects": [{"text": "singer", "rise": 0.4}], "triple": TRIPLE}
    scores = {layer: 7.5 if layer in layers else 0.5 + layer / 100 for layer in range(count)}
    return {
        "verdict": verdict,
        "kind": "rank one" if layers else None,
        "rank": len(layers) or None,
        "layers": list(layers),
        "why": "it was so",
        "exit_code": 3 if layers else 4 if verdict == "cannot tell" else 0,
        "facts": len(layers),
        "threshold": threshold,
        "ranking": [{"layer": layer, "score": score} for layer, score in sorted(scores.items(), key=lambda item: -item[1])],
        "edits": edits,
    }


def finding(unknown, known=None, **more):
    used = known or unknown
    if known:
        known |= {"compared": 272, "changed": 1, "farthest": [{"tensor": "layers.5.down", "distance": 0.18}]}
    return {
        "verdict": used["verdict"],
        "used": "base known" if known else "base unknown",
        "exit_code": used["exit_code"],
        "suspect": "/theirs/suspect",
        "base": "/ours/base" if known else None,
        "family": "llama",
        "layers": 30,
        "subjects": 890,
        "base_known": known,
        "base_unknown": unknown,
        "notes": ["Two files were not read."],
    } | more


def page(tmp_path, *of, **more):
    return write_audit(tmp_path / "audit.html", finding(*of, **more), "python evaluate.py suspect=it").read_text(encoding="utf-8")


def said(html):
    """What a reader sees of a page, its figures and the folded JSON aside."""
    body = re.sub(r"(?s)<svg.*?</svg>|<pre.*?</pre>", "", html[html.index("<body>") :])
    return " ".join(re.sub(r"<[^>]+>", "", body.replace("</td>", " ")).split())
