"""Weights of exponential multistep methods: integrals of interpolating polynomials, by Gauss-Legendre quadrature."""

import numpy as np

LEGENDRE = np.polynomial.legendre.leggauss(24)      # places in [-1, 1] and weights


def exponential_moments(start: float, end: float, n: int, data_std: float) -> np.ndarray:
    """(n,): the integral over [start, end] of e^-lambda / R^2 times (lambda - start)^k, k from 0; R as in what follows."""
    places, weights = LEGENDRE
    half = (end - start) / 2
    lam = (start + end) / 2 + half * places
    weight = half * weights * np.exp(-lam) / (data_std**2 + np.exp(-2 * lam))
    return np.power.outer(lam - start, np.arange(n)).T @ weight


def exponential_weights(start: float, end: float, nodes: np.ndarray, data_std: float) -> np.ndarray:
    """(n,): the integral over [start, end] of e^-lambda / R^2 times each Lagrange polynomial of the nodes (n,).

    R^2 = data_std^2 + e^(-2 lambda).
    """
    places, weights = LEGENDRE
    half = (end - start) / 2
    lam = (start + end) / 2 + half * places
    return lagrange(nodes, lam) @ (half * weights * np.exp(-lam) / (data_std**2 + np.exp(-2 * lam)))


def lagrange(nodes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n, m): the Lagrange polynomial of each of the nodes (n,), 1 there and 0 at the others, at the places (m,)."""
    basis = np.ones((len(nodes), len(places)))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            basis[j] *= (places - other) / (node - other)
    return basis
