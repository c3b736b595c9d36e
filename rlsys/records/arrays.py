"""Array types of record fields. `rlsys.wire` refuses an array of another dtype or rank than its hint declares.

Array letters: T tokens of one response, S tokens of one prompt (image placeholders expanded), C candidate tokens, H and W
image rows and columns.
"""

from __future__ import annotations

import numpy as np

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]
TokenFloats = np.ndarray[tuple[int], np.dtype[np.float32]]
TokenMask = np.ndarray[tuple[int], np.dtype[np.uint8]]
CandidateFloats = np.ndarray[tuple[int, int], np.dtype[np.float32]]
