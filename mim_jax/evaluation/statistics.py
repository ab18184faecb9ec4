"""Cheap numbers that show a collapsing representation long before its accuracy does."""

from __future__ import annotations

import numpy as np


def representation_statistics(features: np.ndarray) -> dict[str, float]:
    """Statistics of `features [N, D]`, `N >= 2`.

    Returns:
      `feature_std`: standard deviation over examples, averaged over dimensions, in the features' own units. 0 when all
        images have the same features.
      `effective_rank`: exponential of the entropy of the normalised singular values of the centred features (Roy and
        Vetterli 2007; Garrido et al. 2023, "RankMe", without centring). Between 1 and `min(N - 1, D)`; 0 when all
        images have the same features.
      `mean_cosine`: cosine similarity averaged over all pairs of different examples. 1 when all features point one way.

    Raises:
      ValueError: fewer than two examples.
    """
    if len(features) < 2:
        raise ValueError(f"Representation statistics need at least two examples, not {len(features)}.")
    features = features.astype(np.float64)
    centred = features - features.mean(axis=0)
    return {
        "feature_std": float(features.std(axis=0).mean()),
        "effective_rank": _effective_rank(centred),
        "mean_cosine": _mean_cosine(features),
    }


def _effective_rank(centred: np.ndarray) -> float:
    # The smaller of the two Gram matrices has the same non-zero spectrum.
    gram = centred.T @ centred if centred.shape[0] >= centred.shape[1] else centred @ centred.T
    eigenvalues = np.linalg.eigvalsh(gram)
    # Rounding leaves noise of about float64's epsilon times the largest eigenvalue, whose square root would count.
    floor = eigenvalues[-1] * len(gram) * np.finfo(np.float64).eps
    singular = np.sqrt(eigenvalues[eigenvalues > max(floor, np.finfo(np.float64).tiny)])
    if not singular.size:
        return 0.0
    share = singular / singular.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def _mean_cosine(features: np.ndarray) -> float:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.where(norms > 0.0, norms, 1.0)
    count = len(features)
    # |sum of unit vectors|^2 holds every pair twice and every vector with itself once.
    own = float(np.square(directions).sum())
    return float((np.square(directions.sum(axis=0)).sum() - own) / (count * (count - 1)))
