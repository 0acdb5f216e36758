# SPDX-License-Identifier: Apache-2.0
"""Labels refined to the edges of the image. Needs the optional extra `refine`."""
