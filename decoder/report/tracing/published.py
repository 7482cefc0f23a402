"""What Youssef et al. (2025, arXiv 2505.20819; first version, Qwen2.5 of the second) report of their hosts, all edited by ROME."""

from collections.abc import Mapping

SOURCE = "Youssef et al. 2025, arXiv 2505.20819"

DIRECTIONS = {"GPT2-XL": "above 0.8", "GPT-J": "above 0.8", "Llama-3": "about 0.5"}
"""Share of an update's rows in one direction (section 4.1)."""

PCS = {"GPT2-XL": ("9.1e-5", "5.5e-3 to 1.8e-2"), "GPT-J": ("1.9e-4", "1.6e-3 to 5.3e-3"), "Llama-3": ("–", "no change seen")}
"""pcs of the layer, unedited and edited (section 4.2)."""

CLASSES = (2, 3, 5, 10, 15, 20, 25, 30)
RELATIONS = {
    "GPT2-XL": (0.994, 0.967, 0.903, 0.846, 0.762, 0.729, 0.678, 0.649),
    "GPT-J": (0.960, 0.967, 0.922, 0.832, 0.728, 0.681, 0.634, 0.572),
    "Llama-3": (0.924, 0.851, 0.786, 0.567, 0.441, 0.334, 0.291, 0.266),
}
"""Accuracy by number of relations (section 5); 50 training and 50 test edits a relation."""

REVERSAL: Mapping[str, tuple[tuple[int, float, float], ...]] = {
    "GPT2-XL": ((1, 0.871, 0.074), (11, 0.945, 0.013)),
    "GPT-J": ((2, 0.729, 0.068), (14, 0.800, 0.023)),
    "Llama-3": ((5, 0.668, 0.203), (15, 0.800, 0.065)),
    "Qwen2.5": ((13, 0.629, 0.261),),
}
"""Components taken out, next token back, edit left (section 7); 310 edits. The last of a host is its best k, chosen with labels."""

SIMILARITY = {"GPT2-XL": (0.98,), "GPT-J": (0.77, 0.45), "Llama-3": (0.20,)}
"""Largest cosine between a row of the update and one of the first terms of W', in their order (section 7.2)."""

TEXTS = {"GPT-J": (1.37, 2.46), "Llama-3": (1.36, 1.84)}
"""Different continuations, unedited and edited (section 7.3)."""
