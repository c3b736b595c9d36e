"""Pairs of the released preference data sets MM-RLHF, RLHF-V and RLAIF-V; `rlsys.prompts.released` describes their columns.

replay=offline_pairs replay.schema=rlaif_v replay.path=data/RLAIF-V-Dataset replay.share=0.25
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.examples.scaling import beta_scale
from rlsys.journal import Past
from rlsys.prompts.released import Preferred, ReleasedData, check_options
from rlsys.records import PreferencePair
from rlsys.replay.mixing import MixedPairs, text_pair


@registry.replay("offline_pairs")
@dataclass(kw_only=True)
class OfflinePairs(MixedPairs):
    """Adds the pairs of a data set. Ties, and rows with two equal texts, are left out.

    If a row has the scores of both responses, the pair gets these scores and their margin, and its beta is scaled by the
    margin. If a row of MM-RLHF has only `ls_factor`, the pair's beta is scaled by `1 + scale_w * ls_factor`. Scores that
    contradict the row's order of preference are ignored.
    """

    schema: str
    """`mm_rlhf`, `rlhf_v` or `rlaif_v`."""
    path: str
    """A .jsonl, .json or .parquet file, a folder of parquet files, or a folder written by `Dataset.save_to_disk`."""
    images: str | None = None
    """Folder that relative image paths start from; `null` is the folder of the data."""
    label: str = ""
    """Name under which the pairs are counted; the schema if empty. Two sets of one schema in a run need different labels."""
    scale_w: float = 0.5
    """w of dynamic reward scaling (`rlsys.examples.scaling`); 0 gives every pair the same beta."""
    scale_k: float = 0.5
    """k of dynamic reward scaling, per score unit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options("replay", self.schema, self.path)
        for name in ("scale_w", "scale_k"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"replay.{name} must be at least 0, got {getattr(self, name)}")

    @property
    def sources(self) -> tuple[str]:
        """The label, or the schema if the label is empty."""
        return (self.label or self.schema,)

    def check(self) -> None:
        """Check the data.

        Raises:
            ConfigError: the data or a file that it names is missing, a row does not have the schema, or there is no pair.
        """
        if not self._pairs:
            raise ConfigError(f"replay.path has no pairs of preferred and other responses: {self.path!r}")
        self._data.check_files()
        self._pairs[0]

    def pairs(self, past: Past) -> Sequence[PreferencePair]:
        """The data set's pairs, in its order."""
        return self._pairs

    def pair(self, row: int) -> PreferencePair:
        """The pair of row number `row`."""
        preferred = self._data.preferred(row)
        scores, scale = self._weighed(preferred)
        return text_pair(self._data.prompt(row), preferred.chosen, preferred.rejected, scores=scores, beta_scale=scale)

    def _weighed(self, preferred: Preferred) -> tuple[tuple[float, float], float]:
        """The scores of a pair, and the factor on its beta."""
        scores = preferred.scores
        if scores is not None and scores[0] > scores[1]:
            return scores, beta_scale(scores[0] - scores[1], self.scale_w, self.scale_k)
        known = scores is None and preferred.strength is not None
        return (self.margin, 0.0), 1.0 + self.scale_w * preferred.strength if known else 1.0

    @cached_property
    def _data(self) -> ReleasedData:
        return ReleasedData(self.schema, self.path, images=self.images, section="replay")

    @cached_property
    def _pairs(self) -> _Pairs:
        return _Pairs(self, self._data.pairs)


class _Pairs(Sequence[PreferencePair]):
    """Pairs that are made on access."""

    def __init__(self, source: OfflinePairs, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> PreferencePair:
        return self._source.pair(self._rows[place])
