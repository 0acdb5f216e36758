# SPDX-License-Identifier: Apache-2.0
"""Scores of models against ground truth: labels, regions, objects."""
