"""Tools of the other packages: noise streams, grids, quadrature, integration, files, devices, processes.

This package imports none of the others.
"""
