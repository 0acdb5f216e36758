# SPDX-License-Identifier: Apache-2.0
"""Model files: their metadata and its checks, the models that ship, groups of classes."""
