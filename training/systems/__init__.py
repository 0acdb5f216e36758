# SPDX-License-Identifier: Apache-2.0
"""One LightningModule for each system of the paper."""
