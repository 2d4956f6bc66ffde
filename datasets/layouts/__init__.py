# SPDX-License-Identifier: Apache-2.0
"""Raw layouts of public data sets, and of any folder, listed into data lists."""
