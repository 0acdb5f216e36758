# SPDX-License-Identifier: Apache-2.0
"""The temperature of a model's softmax, so that its confidence is how often it is right."""
