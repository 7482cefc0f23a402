"""What a vote is, plainly: the mean of what each decoder says, text by text."""

from collections.abc import Mapping, Sequence


def mean_of_texts(said: Sequence[Mapping[str, float]]) -> list[tuple[str, float]]:
    """The texts of several decoders with the mean of their probabilities, the most probable first."""
    total: dict[str, float] = {}
    for texts in said:
        for text, probability in texts.items():
            total[text] = total.get(text, 0.0) + probability / len(said)
    return sorted(total.items(), key=lambda pair: -pair[1])
