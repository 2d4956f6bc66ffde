# SPDX-License-Identifier: Apache-2.0
"""What runs a network: evaluators, inferers, losses, batches, precision, weights and their settings, overrides."""
