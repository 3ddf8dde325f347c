"""What the other packages compute with: noise streams, grids, quadrature, integration, files, devices, processes.

This package knows none of the others.
"""
