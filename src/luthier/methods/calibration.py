"""Calibration of label probabilities: what a prompt says of an input without content is divided out.

p(y | x) is the softmax of the label words' scores over the labels, p_cf(y) its mean over content-free inputs:

    contextual       N/A, [MASK] and the empty text (Zhao et al. 2021, arXiv:2102.09690, section 4: W = diag(p_cf)^-1, b = 0)
    domain-context   random words of the task's own texts, as long as they are (Fei et al. 2023, arXiv:2305.19148, section 4)

Both give  q(y | x) = p(y | x) / p_cf(y), scaled to sum to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONTENT_FREE = ("N/A", "[MASK]", "")
RANDOM_TEXTS = 20


def normalised(scores: np.ndarray) -> np.ndarray:
    """log softmax over the labels. scores (..., labels), any log-likelihoods."""
    top = scores.max(-1, keepdims=True)
    shifted = scores - top
    logged: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logged


def calibrated(scores: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """log q(y | x).

    >>> values = np.exp(calibrated(np.log([0.6, 0.4]), np.log([[0.75, 0.25]])))
    >>> [round(float(value), 4) for value in values]  # 0.6 / 0.75 = 0.8 and 0.4 / 0.25 = 1.6
    [0.3333, 0.6667]

    Args:
        scores: (labels,) or (items, labels) log-likelihoods of the label words.
        content_free: (texts, labels) the same behind inputs without content.
    """
    mean = np.exp(normalised(content_free)).mean(0)
    return normalised(normalised(scores) - np.log(np.maximum(mean, 1e-300)))


def random_texts(texts: Sequence[str], drawn: np.random.Generator, count: int = RANDOM_TEXTS) -> list[str]:
    """Texts of words drawn at random from all texts, each as long as a text is on average."""
    split = [text.split() for text in texts]
    words = [word for several in split for word in several]
    length = max(1, round(len(words) / max(1, len(split))))
    return (
        [" ".join(words[at] for at in drawn.integers(0, len(words), length)) for _ in range(count)] if words else [""]
    )
