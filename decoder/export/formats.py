"""What the JSON files of exported decoders and of stores hold; a file that was damaged or written by hand is refused in one line.

Only what is read again is described; a file may hold more. Kinds are strict: "1" is no number, and true is none either.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

from decoder.config.options import as_list
from decoder.scores import TEST_SPLITS, VAL_SPLITS
from decoder.utils.json_files import Count, FromOne, Score, Shape


class ExportedHost(TypedDict):
    id: str
    path: str | None
    cached_as: str | None
    revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    model_type: str
    fingerprint: str
    vocabulary: FromOne


Layers = Annotated[list[Count], Field(min_length=2)]


class Editor(TypedDict):
    name: str
    settings: dict[str, Any]


class Exported(TypedDict):
    """What a decoder says of itself, in its own config and in the index of a collection.

    Of several edited layers, `edited_layer`, `module`, `shape` and `base_sha256` are lists, an entry a layer.
    """

    host: ExportedHost
    module: str | list[str]
    edited_layer: Count | Layers
    trained_layer: list[Count]
    shape: Shape | list[Shape]
    base_sha256: str | list[str]
    editors: list[Editor]
    seed: int
    base_model: NotRequired[str | None]


@with_config(ConfigDict(extra="forbid"))  # they are the arguments of a search
class Search(TypedDict):
    beams: FromOne
    max_object_tokens: FromOne


class Quantiles(TypedDict):
    quantiles: Annotated[list[FiniteFloat], Field(min_length=1)]


class Calibration(TypedDict):
    auroc: float
    null: Quantiles
    edit: Quantiles


Splits = TypedDict("Splits", dict.fromkeys(("train", *TEST_SPLITS), list[str]) | dict.fromkeys(VAL_SPLITS, NotRequired[list[str]]))


class Several(TypedDict):
    """Of a decoder of edits that plant several facts: how many, and the probability from which an answer counts as found."""

    facts: FromOne
    found_from: FiniteFloat


class SplitScores(TypedDict):
    n: Count
    first_token: Score
    exact_match: Score


class BaselineScores(TypedDict):
    n: Count
    first_token: Score
    exact_match: Score | None


def layers_of(config: Mapping[str, Any]) -> list[int]:
    """The edited layers of a decoder, by its config or its entry in an index."""
    return as_list(config["edited_layer"])


class DecoderConfig(Exported):
    """`decoder_config.json` beside the weights."""

    prompt_length: FromOne
    scope: Literal["prompt", "all"]
    arithmetic: Literal["factors", "dense"]
    terminator_id: Count | None
    learnt_end: NotRequired[bool]
    own_key_tokens: NotRequired[Count]
    apart: NotRequired[bool]
    search: Search
    store: str
    splits: Splits
    scores: dict[str, SplitScores]
    calibration: Calibration
    several: NotRequired[Several]


class IndexScore(TypedDict):
    n: Count
    exact_match: FiniteFloat


class IndexEntry(Exported):
    folder: str
    validation: FiniteFloat
    scores: dict[str, IndexScore]
    run: str


class Index(TypedDict):
    """`index.json` of a collection of decoders."""

    decoders: list[IndexEntry]


DECODER_CONFIG, COLLECTION_INDEX = TypeAdapter(DecoderConfig), TypeAdapter(Index)
SCORES_OF_BASELINES = TypeAdapter(dict[str, dict[str, bool | BaselineScores]])
"""Scores of some baselines by split, and whether each has the base."""
