# SPDX-License-Identifier: Apache-2.0
"""Clusters of patch features as a model file, and names for clusters."""
