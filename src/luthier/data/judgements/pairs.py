"""Rankings taken apart: every pair of a judgement as a judgement of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from luthier.data.judgements.judged import Judged, ranks_of
from luthier.data.judgements.records import FORMS


def as_pairs(judged: Judged) -> Judged:
    """Each pair that a judgement sets apart or ties becomes a ranking of two, with its rater, weight and margin.

    Shuffled over a data set such pairs overfit (InstructGPT, Ouyang et al. 2022, section 3.5): this is how to see it.
    """
    owner, which, values = [], [], []
    for number in range(len(judged)):
        at = judged.cells(number)
        ranks = ranks_of(judged.values[at], int(judged.form[number]))
        for one in range(len(ranks)):
            for other in range(one + 1, len(ranks)):
                a, b = ranks[one], ranks[other]
                if np.isnan(a) or np.isnan(b) or (np.isinf(a) and np.isinf(b)):
                    continue
                owner.append(number)
                which.append(judged.which[at][[one, other]])
                values.append([1.0 + (a > b), 1.0 + (b > a)])
    ids = np.array(owner, dtype=np.int64)
    count = len(ids)
    kept = {name: getattr(judged, name)[ids] for name in ("item", "rater", "weight", "margin", "row")}
    return replace(
        judged, offsets=2 * np.arange(count + 1), which=np.array(which, dtype=np.int64).reshape(-1),
        values=np.array(values, dtype=np.float64).reshape(-1), shown=np.full(2 * count, -1),
        form=np.full(count, FORMS.index("ranking")), **kept,
    )  # fmt: skip
