"""The rivals, each from its paper.

`methods.RIVALS` names those that find sparse weights, `optimizers.OPTIMIZERS` those of the
classification table, `filters.RIVALS` those that remove filters.
"""
