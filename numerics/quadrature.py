"""Weights of exponential Adams methods: integrals of interpolating polynomials against the flow of a Gaussian."""

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def exponential_weights(start: float, end: float, nodes: np.ndarray, data_std: float) -> np.ndarray:
    """(n,): the integral over [start, end] of e^-lambda / R^2 times each Lagrange polynomial of the nodes (n,).

    R^2 = data_std^2 + e^(-2 lambda).
    """
    half = (end - start) / 2
    lam = (start + end) / 2 + half * _NODES
    weight = half * _WEIGHTS * np.exp(-lam) / (data_std**2 + np.exp(-2 * lam))
    basis = np.ones((len(nodes), len(lam)))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            basis[j] *= (lam - other) / (node - other)
    return basis @ weight
