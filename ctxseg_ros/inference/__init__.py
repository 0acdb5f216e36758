# SPDX-License-Identifier: Apache-2.0
"""From frame to prediction: runtimes, the engine with one per input size, the pipeline."""
