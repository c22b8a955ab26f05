"""The statistics that the method comes from: whole paths of sparse models of small data.

Linearized Bregman iterations and the inverse scale space for linear models, split forms of them,
outliers, ranking: the prox of the deep optimizer, another loss.
"""
