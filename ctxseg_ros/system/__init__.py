# SPDX-License-Identifier: Apache-2.0
"""The machine underneath: walks over files, whole output files, process figures, misspelt names."""
